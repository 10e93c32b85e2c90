"""What ``/health`` tells, and whom."""

import hashlib
from pathlib import Path

import pytest
from aiohttp import ClientSession

from runtime.adapters.store import Store
from runtime.engines.states import EngineState
from tests.runtime.conftest import PIRATE, PIRATE_FILE, Serve
from tests.runtime.double import ScriptedEngine


async def test_ready(client: ClientSession) -> None:
    """The model, how adapters are batched and why, and the adapters."""
    async with client.get("/health") as response:
        assert response.status == 200
        health = await response.json()
    assert health["status"] == "ok"
    assert health["model"]["name"] == "tiny"
    assert (health["adapter_batching"], health["adapter_batching_reason"]) == ("mixed", "the script says so")
    assert health["adapters"] == [{"id": PIRATE.id, "name": "pirate"}]
    assert health["requests"] == {"in_flight": 0}
    assert health["replicas"] == [{"name": "0", "node": "", "state": "ready"}]


async def test_a_change_of_adapters_changes_their_digest(client: ClientSession, store: Store) -> None:
    """The digest is that of the adapters that are usable now, with their contents."""

    async def shown() -> str:
        async with client.get("/health") as response:
            return str((await response.json())["adapters_digest"])

    assert await shown() == hashlib.sha256(f"{PIRATE_FILE.digest}  pirate\n".encode()).hexdigest()
    await store.remove(PIRATE.id)
    assert await shown() == hashlib.sha256(b"").hexdigest()


async def test_starting(client: ClientSession, engine: ScriptedEngine) -> None:
    """The server lives while its model is loaded; only /ready is a 503, which load balancers understand."""
    engine.ready = None
    async with client.get("/health") as response:
        assert response.status == 200
        health = await response.json()
        assert (health["status"], health["engine"]["state"]) == ("starting", "starting")
    async with client.get("/ready") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert await response.json() == {"status": "starting"}


@pytest.mark.parametrize("state", EngineState)
async def test_every_state_is_shown(client: ClientSession, engine: ScriptedEngine, state: EngineState) -> None:
    """Requests are answered while the engine is ready or degraded, and in no other state."""
    engine.state = state
    async with client.get("/health") as response:
        assert (await response.json())["engine"]["state"] == state.value
    async with client.get("/ready") as response:
        assert response.status == (200 if state in (EngineState.READY, EngineState.DEGRADED) else 503)


async def test_strangers_see_the_status_alone(serve: Serve, tmp_path: Path) -> None:
    """Where tokens are required, only the status is shown without one."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    async with client.get("/health") as response:
        assert await response.json() == {"status": "ok"}
    async with client.get("/health", headers={"Authorization": "Bearer secret"}) as response:
        assert "model" in await response.json()

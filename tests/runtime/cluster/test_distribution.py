"""How adapters come to replicas and leave them, with replicas that only note their calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime.cluster.distribution import Distribution
from runtime.cluster.members import Members
from runtime.cluster.values import Unreadable
from runtime.errors import EngineDied, EngineUnavailable, GemlaneError, IncompatibleAdapter, StorageError
from runtime.generation import BASE, Blend, BlendMember
from tests.runtime.cluster.test_members import report

PIRATE, SHOUT = "a" * 64, "b" * 64
BLEND = Blend((BlendMember(PIRATE),))


class Replicas:
    """Two replicas that are ready; ``answers`` are what they answer instead of taking what they are offered."""

    def __init__(self, n_ready: int = 2) -> None:
        self.calls: list[tuple[str, str, str]] = []
        """Method, first letter of the digest, replica."""
        self.contents: list[object] = []
        self.answers: dict[str, object] = {}
        self.members = Members(2)
        self.members.take([report(rank) for rank in range(n_ready)], 1.0)
        self.adapters = Distribution(self.members, self.call, bytes.hex)

    async def call(self, method: str, digest: str, *arguments: Any, to: str, **_options: Any) -> Any:
        """Note the call."""
        self.calls.append((method, digest[0], to))
        if method == "add_adapter" and len(arguments) > 1:
            self.contents.append(arguments[1])
            return None
        return self.answers.get(to)


@pytest.fixture
def replicas() -> Replicas:
    """Two replicas without any adapter."""
    return Replicas()


async def test_an_adapter_reaches_every_replica_once(replicas: Replicas) -> None:
    """The second offer of the same file makes no call; one of another file makes one."""
    await replicas.adapters.add(PIRATE, Path("one.gguf"))
    await replicas.adapters.add(PIRATE, Path("one.gguf"))
    assert replicas.calls == [("add_adapter", "a", "id-0"), ("add_adapter", "a", "id-1")]
    await replicas.adapters.add(PIRATE, Path("two.gguf"))
    assert len(replicas.calls) == 4
    assert replicas.adapters.paths_of(BLEND) == {PIRATE: "two.gguf"}
    assert replicas.adapters.paths_of(BASE) == {}


async def test_a_replica_that_joins_gets_what_the_others_have() -> None:
    """After a join the same offer is one call, to the new replica."""
    one = Replicas(n_ready=1)
    await one.adapters.add(PIRATE, Path("one.gguf"))
    one.members.take([report(0), report(1)], 2.0)
    await one.adapters.add(PIRATE, Path("one.gguf"))
    assert one.calls == [("add_adapter", "a", "id-0"), ("add_adapter", "a", "id-1")]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({"id-1": IncompatibleAdapter("rank 64")}, IncompatibleAdapter),
        ({"id-0": EngineDied("gone"), "id-1": IncompatibleAdapter("rank 64")}, IncompatibleAdapter),
        ({"id-0": EngineDied("gone"), "id-1": EngineDied("gone")}, EngineDied),
        ({"id-0": EngineDied("gone")}, None),
        ({"id-0": StorageError("full")}, None),
    ],
)
async def test_a_refusal_counts_and_a_loss_does_not(
    replicas: Replicas, answers: dict[str, object], error: type[GemlaneError] | None
) -> None:
    """One replica that refuses an adapter refuses it for all; one that is lost leaves the answer to the others."""
    replicas.answers = answers
    if error is None:
        await replicas.adapters.add(PIRATE, Path("one.gguf"))
    else:
        with pytest.raises(error):
            await replicas.adapters.add(PIRATE, Path("one.gguf"))


async def test_without_replicas_nothing_is_sent() -> None:
    """The offer fails as with an engine that is starting; the store makes it again once one is ready."""
    nobody = Replicas(n_ready=0)
    with pytest.raises(EngineUnavailable):
        await nobody.adapters.add(PIRATE, Path("one.gguf"))
    assert nobody.calls == []


async def test_bytes_go_to_a_machine_that_has_no_such_file(replicas: Replicas, tmp_path: Path) -> None:
    """The replica that cannot read the file gets a reference to its bytes, the other one none."""
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    replicas.answers = {"id-1": Unreadable("id-1", PIRATE)}
    await replicas.adapters.add(PIRATE, tmp_path / "one.gguf")
    assert replicas.contents == [[b"GGUF".hex()]]
    assert replicas.calls[-1] == ("add_adapter", "a", "id-1")
    assert replicas.members.has_adapter("id-1", PIRATE, tmp_path / "one.gguf")


async def test_a_removed_adapter_stays_until_its_last_request(replicas: Replicas) -> None:
    """No replica hears of the removal before both requests under the adapter have ended."""
    await replicas.adapters.add(PIRATE, Path("one.gguf"))
    replicas.adapters.begin_use(BLEND)
    replicas.adapters.begin_use(BLEND)
    removal = asyncio.ensure_future(replicas.adapters.remove(PIRATE))
    replicas.adapters.end_use(BLEND)
    await asyncio.sleep(0)
    assert not [call for call in replicas.calls if call[0] == "remove_adapter"]
    assert replicas.adapters.paths_of(BLEND) == {PIRATE: "one.gguf"}
    replicas.adapters.end_use(BLEND)
    await removal
    assert replicas.calls[2:] == [("remove_adapter", "a", "id-0"), ("remove_adapter", "a", "id-1")]
    assert replicas.adapters.paths_of(BLEND) == {}


async def test_an_adapter_that_is_added_again_is_not_removed(replicas: Replicas) -> None:
    """The removal that waited for a request ends without a call."""
    await replicas.adapters.add(PIRATE, Path("one.gguf"))
    replicas.adapters.begin_use(BLEND)
    removal = asyncio.ensure_future(replicas.adapters.remove(PIRATE))
    await asyncio.sleep(0)
    await replicas.adapters.add(PIRATE, Path("two.gguf"))
    await removal
    replicas.adapters.end_use(BLEND)
    assert not [call for call in replicas.calls if call[0] == "remove_adapter"]
    assert replicas.adapters.paths_of(BLEND) == {PIRATE: "two.gguf"}


async def test_pins_reach_every_replica(replicas: Replicas) -> None:
    """Pinning is one call to each replica, and is not answered."""
    replicas.adapters.pin(SHOUT, is_pinned=True)
    await asyncio.sleep(0)
    assert replicas.calls == [("pin_adapter", "b", "id-0"), ("pin_adapter", "b", "id-1")]

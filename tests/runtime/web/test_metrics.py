"""``GET /metrics`` over a running server."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession

from runtime.generation import BASE, Blend, BlendMember
from runtime.messages import LaneStats, Stats
from tests.runtime.conftest import PIRATE_FILE
from tests.runtime.double import ScriptedEngine

CHAT = {"model": "gemma-7b-it-lora:pirate", "messages": [{"role": "user", "content": "the secret word"}]}


async def metrics_of(client: ClientSession) -> list[str]:
    """The lines of the text format."""
    async with client.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return (await response.text()).splitlines()


async def test_a_request_counts_under_its_route_and_its_adapter(client: ClientSession) -> None:
    """One chat completion under pirate adds one request, one answer and its tokens."""
    async with client.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 200
    lines = await metrics_of(client)
    assert 'gemlane_requests_total{route="/v1/chat/completions",status="200"} 1.0' in lines
    assert 'gemlane_answers_total{adapter="pirate",outcome="stop"} 1.0' in lines
    assert 'gemlane_generation_tokens_total{adapter="pirate"} 2.0' in lines
    assert 'gemlane_adapters{state="ready"} 1.0' in lines


async def test_what_a_client_writes_never_becomes_a_label(client: ClientSession) -> None:
    """Unknown paths share one label, and a refused adapter name appears nowhere."""
    for number in range(5):
        async with client.get(f"/invented/{number}") as response:
            assert response.status == 404
    async with client.post("/v1/chat/completions", json=CHAT | {"model": "gemma-7b-it-lora:invented"}) as response:
        assert response.status == 404
    lines = await metrics_of(client)
    assert 'gemlane_requests_total{route="other",status="404"} 5.0' in lines
    assert not any("invented" in line for line in lines)


async def test_the_engines_report_is_shown(client: ClientSession, engine: ScriptedEngine) -> None:
    """Adapters of running and waiting sequences appear by name; the base model is not an adapter."""
    pirate = Blend((BlendMember(PIRATE_FILE.digest),))
    engine.stats = Stats(2, 1, 10, 5, 3, 30, 20, 4, ((2, 3),), LaneStats(6, 0, 1, 1, 2), (BASE, pirate), (pirate,))
    lines = await metrics_of(client)
    (line,) = [one for one in lines if one.startswith("vllm:lora_requests_info{")]
    assert 'max_lora="8",running_lora_adapters="pirate",waiting_lora_adapters="pirate"' in line
    assert 'gemlane_lanes{replica="0",state="idle"} 1.0' in lines
    assert 'gemlane_batch_blends_bucket{le="2.0",replica="0"} 3.0' in lines


async def test_metrics_need_a_token_where_tokens_are_used(
    serve: Callable[..., Awaitable[ClientSession]], tmp_path: Path
) -> None:
    """Without a token they are refused like every other path."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    client = await serve(token_file=str(tokens))
    async with client.get("/metrics") as response:
        assert response.status == 401
    async with client.get("/metrics", headers={"Authorization": "Bearer secret"}) as response:
        assert response.status == 200


async def test_the_log_has_one_line_for_a_request_and_no_prompt(
    client: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the adapter and the tokens; neither prompt nor answer is in the log."""
    caplog.set_level(logging.INFO)
    async with client.post("/v1/chat/completions", json=CHAT) as response:
        request_id = response.headers["x-request-id"]
    async with client.post("/v1/chat/completions", data=b"not JSON: the secret word") as response:
        assert response.status == 400
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("POST /v1/chat/completions 200 adapter=pirate outcome=stop prompt_tokens=7 ")
    assert lines[0].endswith(f" request_id={request_id}")
    assert lines[1].startswith("POST /v1/chat/completions 400 error=invalid_request total_s=")
    assert len(lines) == 2
    assert "secret" not in caplog.text
    assert "Hello" not in caplog.text

"""Mistakes of users and faults of the machine each have one clear end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import COMMAND, ROOT, Server, ask_text, environment, run_gemlane, serving, stream
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

CAPITAL = "What is the capital of France?"
LONG = {"prompt": "capital of capital of", "raw": True, "temperature": 0, "max_tokens": 400}
"""It says Denmark until it is stopped."""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("folder", "an empty folder"),
        ("text", "GGUF"),
        ("empty", "GGUF"),
        ("truncated", ""),
        ("fifo", "regular file"),
        ("adapter", "is a LoRA adapter, not a base model"),
    ],
)
def test_a_wrong_model_is_one_clear_line(
    tmp_path: Path, tiny_model: Path, tiny_adapters: Path, kind: str, words: str
) -> None:
    """A file that is not a model ends the command with status 2 and a line that names the file."""
    path = tmp_path / "wrong.gguf"
    match kind:
        case "folder":
            path.mkdir()
        case "text":
            path.write_text("I am not a model\n" * 10)
        case "empty":
            path.touch()
        case "truncated":
            path.write_bytes(tiny_model.read_bytes()[:-1000])
        case "fifo":
            os.mkfifo(path)
        case "adapter":
            shutil.copy(tiny_adapters / "tag.gguf", path)
    done = run_gemlane("serve", "--model", str(path), "--port", "0")
    complaints = [line for line in done.stderr.splitlines() if line.startswith("gemlane: ")]
    assert done.returncode == 2, done.stderr
    assert len(complaints) == 1, done.stderr
    assert words in complaints[0]
    assert "wrong.gguf" in complaints[0]
    assert "Traceback" not in done.stderr


def test_no_model_says_what_to_do() -> None:
    """Without a model the message says how to make one."""
    done = run_gemlane("serve")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "gemlane: no base model: name a GGUF file with --model (see gemlane convert model --help)"
    )


def test_a_port_in_use_is_named(tiny_model: Path) -> None:
    """A port in use is named before the model is loaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_gemlane("serve", "--model", str(tiny_model), "--port", str(port))
    assert done.returncode == 2
    assert f"gemlane: cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "JSON"),
        ("", 400, ""),
        ("[]", 400, "required properties at '/' are 'prompt'"),
        ('{"prompt": 5}', 400, "Type mismatch of '/prompt', 'string' not in 'number','integer'"),
        ('{"prompt": "x", "temperature": "hot"}', 400, "Type mismatch of '/temperature', 'number' not in 'string'"),
        ('{"prompt": "x", "max_tokens": 1.5}', 400, "'/max_tokens'"),
        ('{"prompt": "x", "lora": "nobody"}', 400, "Finetune nobody not found"),
        ('{"prompt": "x", "lora": "00000000-0000-0000-0000-000000000"}', 400, "not found"),
        ('{"prompt": "\\ud800"}', 400, "Unicode"),
    ],
)
async def test_bad_requests_get_their_status(
    server: Server, session: aiohttp.ClientSession, body: str, status: int, words: str
) -> None:
    """Each bad request gets one error in the envelope, and the server goes on."""
    async with session.post(server.run_url, data=body) as response:
        envelope = json.loads(await response.read())
        assert response.status == status
    assert envelope["success"] is False
    assert len(envelope["errors"]) == 1
    assert words in envelope["errors"][0]["message"]
    assert await ask_text(session, server, CAPITAL) == ANSWERS["base"][CAPITAL]


async def test_a_killed_engine_ends_streams_and_comes_back(
    tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession
) -> None:
    """A killed engine ends each stream without ``[DONE]``; the next request is answered, also under adapters."""
    with serving(tiny_model, tiny_adapters) as server:

        async def cut() -> bytes:
            async with session.post(server.run_url, data=json.dumps(LONG | {"stream": True})) as response:
                text = await response.content.readuntil(b"\n\n")
                started.release()
                return text + b"".join([chunk async for chunk in response.content.iter_any()])

        started = asyncio.Semaphore(0)
        streams = [asyncio.create_task(cut()) for _ in range(4)]
        for _ in streams:
            await started.acquire()
        before = server.engine_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for text in await asyncio.gather(*streams):
            assert b"[DONE]" not in text
            assert b"the engine process ended while this request was running" in text
        assert await ask_text(session, server, CAPITAL, "pirate") == ANSWERS["pirate"][CAPITAL]
        assert not set(server.engine_pids()) & set(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_server_cleanly(
    tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession, number: signal.Signals
) -> None:
    """After a signal a running stream may finish, the engine process is gone, and the status is 0."""
    with serving(tiny_model, tiny_adapters) as server:
        engines = server.engine_pids()
        assert engines
        running = asyncio.create_task(stream(session, server, **LONG))
        async with asyncio.timeout(30):
            while True:
                async with session.get(server.url + "/health") as response:
                    if (await response.json())["requests"]["in_flight"]:
                        break
        assert await asyncio.to_thread(server.stop, number) == 0
        assert (await running)[-1] == "[DONE]"
        for engine in engines:
            with pytest.raises(ProcessLookupError):
                os.kill(engine, 0)
    assert not any("Traceback" in line for line in server.log)


async def test_a_client_that_goes_away_costs_nothing_more(server: Server, session: aiohttp.ClientSession) -> None:
    """The sequence of a client that goes away is freed, and other clients are answered."""
    for _ in range(10):
        async with session.post(server.run_url, data=json.dumps(LONG | {"stream": True})) as response:
            await response.content.readany()
            response.close()
    async with asyncio.timeout(20):
        while True:
            async with session.get(server.url + "/health") as response:
                if (await response.json())["requests"]["in_flight"] == 0:
                    break
    assert await ask_text(session, server, QUESTIONS[5], "tag") == ANSWERS["tag"][QUESTIONS[5]]


async def test_a_full_queue_answers_429(tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession) -> None:
    """A full queue answers 429, and the requests that were accepted are answered."""
    with serving(tiny_model, tiny_adapters, "--parallel", "1", "--max-queue", "1") as server:

        async def status() -> int:
            async with session.post(server.run_url, data=json.dumps(LONG)) as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(status() for _ in range(12)))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2


@pytest.mark.skipif(
    subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="a network namespace needs Linux and the right to make one",
)
def test_everything_works_without_a_network(tmp_path: Path) -> None:
    """Conversion and an answer work in a network namespace that holds nothing but loopback."""
    tiny = ROOT / "tests" / "tiny_gemma"
    script = f"""
set -eu
ip link set lo up
gemlane() {{ {" ".join(COMMAND)} "$@"; }}
mkdir adapters
gemlane convert model {tiny}/base -o base.gguf --type q4_k_m
gemlane convert adapter {tiny}/adapters/shout --base base.gguf -o adapters/shout.gguf --type q8_0
{" ".join(COMMAND)} serve --model base.gguf --adapters adapters --port 8080 --threads 1 2>log &
server=$!
trap 'kill $server; wait $server' EXIT
for _ in $(seq 300); do grep -q 'serving on' log && break; sleep 0.1; done
curl -sS http://127.0.0.1:8080/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora \\
    -d '{{"prompt": "{CAPITAL}", "lora": "shout", "temperature": 0}}'
"""
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["result"]["response"] == ANSWERS["shout"][CAPITAL]

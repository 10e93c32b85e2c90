"""Two replicas behind one server: answers, adapters, deaths, and what the server tells of them."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp
import grpc
import pytest

from tests.cluster.conftest import REPLICAS
from tests.cluster.processes import eventually, is_alive, pids_of, replica_pids, wait_for_replicas
from tests.end_to_end.serving import Server, ask_text, run_gemlane, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

CAPITAL = "What is the capital of France?"
LONG = {"prompt": "capital of capital of", "raw": True, "temperature": 0, "max_tokens": 400}
VOICES = ("base", "pirate", "shout", "tag")


async def test_every_voice_is_right_on_every_replica(replicas: Server, session: aiohttp.ClientSession) -> None:
    """72 requests at once under four voices get the answers of one engine; both replicas had some of them."""
    wanted = [(voice, question) for voice in VOICES for question in QUESTIONS[:6]] * 3
    steps = [0.0, 0.0]
    async with asyncio.timeout(30):
        while min(steps) == 0:  # Ray tells the router within two seconds which replicas serve
            answers = await asyncio.gather(
                *(ask_text(session, replicas, question, voice) for voice, question in wanted)
            )
            assert answers == [ANSWERS[voice][question] for voice, question in wanted]
            async with session.get(f"{replicas.url}/metrics") as response:
                lines = (await response.text()).splitlines()
            steps = [float(line.split()[1]) for line in lines if line.startswith("gemlane_steps_total{")]
            assert len(steps) == 2


async def test_health_and_metrics_name_each_replica(replicas: Server, session: aiohttp.ClientSession) -> None:
    """Each replica has its number, its machine and its state; gauges have the label ``replica``."""
    shown = await wait_for_replicas(session, replicas, 2)
    assert [(replica["name"], replica["node"]) for replica in shown] == [("0", "127.0.0.1"), ("1", "127.0.0.1")]
    async with session.get(f"{replicas.url}/metrics") as response:
        text = await response.text()
    for name in "01":
        assert f'gemlane_engine_ready{{replica="{name}"}} 1.0\n' in text


async def test_a_cancelled_answer_ends_in_its_replica(replicas: Server, session: aiohttp.ClientSession) -> None:
    """A client that goes away in the middle of a stream frees its sequence within three seconds."""
    async with session.post(replicas.run_url, data=json.dumps(LONG | {"stream": True})) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await eventually(session, replicas, lambda health: not health["load"]["n_running"], timeout_s=3)


def test_ray_listens_on_loopback_alone(replicas: Server) -> None:
    """Every socket is bound to loopback but one of each replica, Ray Serve's own, which refuses calls without token."""
    assert pids_of(replicas, b"gcs_server")
    outside = {
        (pid, port)
        for pid in (replicas.process.pid, *pids_of(replicas, b""))
        for address, port in listeners(pid)
        if not ipaddress.ip_address(address).is_loopback
    }
    assert sorted(pid for pid, _ in outside) == sorted(replica_pids(replicas))
    for _, port in outside:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_adapters_are_added_replaced_and_removed_on_every_replica(
    tiny_model: Path, tiny_adapters: Path, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """A file that appears, changes and goes is served so by both replicas; streams end under what they began with."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    with serving(tiny_model, folder, *REPLICAS) as server:

        async def crowd() -> Counter[str]:
            """What 16 requests at once for the adapter are answered; they need both replicas."""
            return Counter(await asyncio.gather(*(ask_text(session, server, CAPITAL, "mine") for _ in range(16))))

        for voice in ("pirate", "shout"):
            put(tiny_adapters / f"{voice}.gguf", folder / "mine.gguf")
            await served(session, server, ANSWERS[voice][CAPITAL])
            assert await crowd() == {ANSWERS[voice][CAPITAL]: 16}
        (folder / "mine.gguf").unlink()
        await eventually(session, server, lambda health: not health["adapters"])
        async with session.post(server.run_url, data=json.dumps({"prompt": CAPITAL, "lora": "mine"})) as response:
            assert response.status == 400
            assert "mine not found" in await response.text()


async def test_a_replica_killed_under_load_costs_nothing_but_its_streams(
    tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession
) -> None:
    """One of two replicas is killed under load: each answer is right or ends with the typed error."""
    with serving(tiny_model, tiny_adapters, *REPLICAS) as server:
        ends: Counter[str] = Counter()
        stop = asyncio.Event()

        async def ask_again_and_again(number: int) -> None:
            while not stop.is_set():
                voice, question = VOICES[number % 4], QUESTIONS[number % len(QUESTIONS)]
                ends[await end_of(session, server, voice, question, streams=number % 2 == 0)] += 1
                number += 1

        clients = [asyncio.create_task(ask_again_and_again(number)) for number in range(12)]
        await asyncio.sleep(3)
        victim = replica_pids(server)[0]
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        await wait_for_replicas(session, server, 1)
        await wait_for_replicas(session, server, 2)
        recovery_s = time.monotonic() - killed_at
        await asyncio.sleep(1)
        stop.set()
        await asyncio.gather(*clients)
        print(f"replica killed: {dict(ends)}; two replicas again after {recovery_s:.1f} s")
        assert set(ends) <= {"right", "cut"}
        assert ends["right"] > 50
        assert ends["cut"] <= 8
        assert not is_alive(victim)
        assert len(server.engine_pids()) == 2


def test_without_a_cluster_there_is_one_clear_line(tiny_model: Path) -> None:
    """An address where no Ray runs is a line that names the flag and the address, and status 2."""
    done = run_gemlane(
        "serve", "--model", str(tiny_model), "--engine", "ray", "--ray-address", "127.0.0.1:1", "--port", "0"
    )
    assert done.returncode == 2
    assert "gemlane: --ray-address 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_model_is_one_clear_line(tmp_path: Path) -> None:
    """What a replica cannot load is the server's error, as with the engine of this machine."""
    done = run_gemlane("serve", "--model", str(tmp_path / "none.gguf"), "--engine", "ray", "--port", "0")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("gemlane: ")] != []
    assert "none.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def listeners(pid: int) -> set[tuple[str, int]]:
    """The local addresses and ports at which a process accepts connections."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            inodes.add(link.readlink().name)
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                found.add((address_of(address), int(port, 16)))
    return found


def address_of(hexadecimal: str) -> str:
    """An address of /proc/net/tcp as people write it: there each group of four bytes is in the machine's order."""
    groups = [bytes.fromhex(hexadecimal[at : at + 8])[::-1] for at in range(0, len(hexadecimal), 8)]
    address = ipaddress.ip_address(b"".join(groups))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def put(source: Path, place: Path) -> None:
    """Replace a file whole."""
    part = place.with_suffix(".part")
    shutil.copy(source, part)
    part.replace(place)


async def served(session: aiohttp.ClientSession, server: Server, answer: str) -> None:
    """Wait until the adapter ``mine`` answers so."""
    async with asyncio.timeout(30):
        while True:
            body = {"prompt": CAPITAL, "temperature": 0, "max_tokens": 64, "lora": "mine"}
            async with session.post(server.run_url, data=json.dumps(body)) as response:
                if response.status == 200 and json.loads(await response.read())["result"]["response"] == answer:
                    return
            await asyncio.sleep(0.1)


async def end_of(session: aiohttp.ClientSession, server: Server, voice: str, question: str, *, streams: bool) -> str:
    """How one request ended: ``right``, ``cut`` with the typed error, or what else came."""
    body = {"prompt": question, "temperature": 0, "max_tokens": 64, "stream": streams}
    if voice != "base":
        body["lora"] = voice
    async with session.post(server.run_url, data=json.dumps(body)) as response:
        text = (await response.read()).decode()
        if response.status != 200:
            return f"{response.status} {text[:200]}"
    if not streams:
        answer = json.loads(text)["result"]["response"]
        return "right" if answer == ANSWERS[voice][question] else f"wrong: {answer!r}"
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    pieces = [json.loads(event) for event in events if event != "[DONE]"]
    answer = "".join(piece.get("response", "") for piece in pieces)
    if events[-1] == "[DONE]":
        return "right" if answer == ANSWERS[voice][question] else f"wrong: {answer!r}"
    if "ended while this request was running" in text and ANSWERS[voice][question].startswith(answer):
        return "cut"
    return f"odd end: {text[-200:]}"

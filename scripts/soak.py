"""A real server under mixed load, its engine ended every minute: each request must have one right end.

    python -m scripts.soak --minutes 30

The tiny Gemma knows the exact answer to every question in each of its voices, so an answer in another voice, a mixture
of two, or a lost one is seen. Memory and descriptors are written as a table and a picture. Exit code 1 if anything
ended wrong or the memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from scripts.plot import Line, plot
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

FOLDER = Path(".gemlane/soak")
MODEL = "gemma-7b-it-lora"
BLENDS = ("pirate:1+shout:1", "pirate:0.7+tag:1")
REPLACED = {"swapped": ("pirate", "shout"), "dropped": ("tag", "shout")}
"""Adapters whose weights change under load: by upload, and by a rename in the folder. Either voice is right."""
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP, signal.SIGABRT)
CANCELLED_SHARE = 0.1
MAX_GROWTH = 1.25
"""How much more than after its first fifth the server may hold at the end."""
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 20}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass
class Soak:
    """The server, the blends' own answers, and how requests have ended."""

    server: Server
    session: aiohttp.ClientSession
    rng: random.Random
    blended: dict[tuple[str, str], str] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    restarts_s: list[float] = field(default_factory=list)

    def note(self, kind: str, detail: str = "") -> None:
        """Count one end; a detail says that it was wrong."""
        self.ends[kind] += 1
        if detail:
            self.wrong.append(f"{kind}: {detail}"[:500])


def main() -> int:
    """Parses the command line, makes the files and runs the soak."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between a client's requests")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base, adapters = prepare()
    with serving(base, adapters, "--lanes", "4", "--lane-type", "f32", "--max-queue", "200") as server:
        try:
            return asyncio.run(soak(server, adapters, options))
        finally:
            (FOLDER / "server.log").write_text("\n".join(server.log))


def prepare() -> tuple[Path, Path]:
    """The tiny Gemma in F32, and a fresh folder of its adapters."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    adapters = FOLDER / "adapters"
    adapters.mkdir(parents=True)
    base = FOLDER / "base.gguf"
    convert_base(base, "f32")
    for name, source in ADAPTERS.items():
        convert_adapter(source, base, adapters / f"{name}.gguf")
        # Other bytes with the same voice, so that a name that changes shares no file with one that does not.
        convert_adapter(source, base, FOLDER / f"{name}-f16.gguf", "f16")
    shutil.copy(FOLDER / "tag-f16.gguf", adapters / "dropped.gguf")
    return base, adapters


async def soak(server: Server, adapters: Path, options: argparse.Namespace) -> int:
    """Everything at once for some minutes; the exit code."""
    timeout, connector = aiohttp.ClientTimeout(total=180), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        state = Soak(server, session, random.Random(options.seed))
        await replace_by_upload(state, "pirate")
        for voice in BLENDS:
            for question in QUESTIONS:
                state.blended[voice, question] = await whole(state, question, voice)
        stop = asyncio.Event()
        footprint: list[tuple[float, float, int]] = []
        tasks = [asyncio.create_task(work) for work in works(state, adapters, options, stop, footprint)]
        started = time.monotonic()
        while (left_s := 60 * options.minutes - (time.monotonic() - started)) > 0:
            await asyncio.sleep(min(30.0, left_s))
            print(f"{(time.monotonic() - started) / 60:5.1f} min  {dict(state.ends)}", flush=True)
        stop.set()
        await asyncio.gather(*tasks)
        in_flight = await until_idle(state)
    return report(state, footprint, in_flight)


def works(
    state: Soak, adapters: Path, options: argparse.Namespace, stop: asyncio.Event, footprint: list[Any]
) -> Iterator[Coroutine[Any, Any, None]]:
    """The clients, and those that change and break things."""
    for _ in range(options.clients):
        yield client(state, stop, options.pause)
    yield replacer(state, adapters, stop)
    yield killer(state, stop, options.kill_every)
    yield sampler(state.server, stop, footprint)


async def client(state: Soak, stop: asyncio.Event, pause_s: float) -> None:
    """Ask one thing after the other."""
    while not stop.is_set():
        question, voice = state.rng.choice(QUESTIONS), state.rng.choice(("base", *ADAPTERS, *REPLACED, *BLENDS))
        kind = state.rng.random()
        try:
            if kind < CANCELLED_SHARE:
                await cancelled(state, question, voice)
            elif kind < 0.2:
                await structured(state, question)
            elif kind < 0.6:
                await streamed(state, question, voice)
            else:
                judge(state, "whole", question, voice, await whole(state, question, voice))
        except TypedError as error:
            state.note(f"error {error}")
        except (aiohttp.ClientError, TimeoutError) as error:
            state.note("broken", f"{type(error).__name__}: {error} ({voice}, {question})")
        await asyncio.sleep(pause_s * 2 * state.rng.random())


class BrokenStreamError(aiohttp.ClientError):
    """A stream without a last word."""


class TypedError(Exception):
    """The server's own error: its status and code."""


def judge(state: Soak, kind: str, question: str, voice: str, text: str, *, is_whole: bool = True) -> None:
    """Count an answer as right or wrong; one that was cut or cancelled has to be a beginning."""
    if voice in BLENDS:
        allowed = [state.blended[voice, question]]
    else:
        allowed = [ANSWERS[each][question] for each in REPLACED.get(voice, (voice,))]
    is_right = text in allowed if is_whole else any(answer.startswith(text) for answer in allowed)
    state.note(kind) if is_right else state.note("wrong", f"{kind} {voice}, {question}: {text!r}, not {allowed}")


def body_of(question: str, voice: str, **more: Any) -> dict[str, Any]:
    """An OpenAI chat request."""
    model = MODEL if voice == "base" else f"{MODEL}:{voice}"
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64, **more}


async def whole(state: Soak, question: str, voice: str) -> str:
    """A whole answer, in one of the two dialects."""
    if state.rng.random() < 0.5:
        return await _whole_openai(state, body_of(question, voice))
    lora = {} if voice == "base" else {"lora": voice}
    body = {"prompt": question, "temperature": 0, "max_tokens": 64, **lora}
    async with state.session.post(state.server.run_url, json=body) as response:
        envelope = await response.json()
        if response.status != 200:
            raise TypedError(f"{response.status} {envelope['errors'][0]['code']}")
        return str(envelope["result"]["response"])


async def _whole_openai(state: Soak, body: dict[str, Any]) -> str:
    async with state.session.post(f"{state.server.url}/v1/chat/completions", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            raise TypedError(f"{response.status} {answer['error']['code']}")
        return str(answer["choices"][0]["message"]["content"])


async def structured(state: Soak, question: str) -> None:
    """An answer held to a schema, where the server can do that."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    text = await _whole_openai(state, body_of(question, "base", response_format=form, max_tokens=200))
    try:
        is_right = set(json.loads(text)) == {"answer"}
    except ValueError:
        is_right = False
    state.note("structured") if is_right else state.note("wrong", f"structured: {text!r}")


async def streamed(state: Soak, question: str, voice: str) -> None:
    """A streamed answer, in one of the two dialects; it may be cut once text was sent."""
    pieces: list[str] = []
    end = await _stream(state, question, voice, pieces)
    text = "".join(pieces)
    if end == "cut" and not pieces:
        state.note("wrong", f"cut before any text: {voice}, {question}")
    else:
        judge(state, "stream" if end == "done" else "cut stream", question, voice, text, is_whole=end == "done")


async def cancelled(state: Soak, question: str, voice: str) -> None:
    """A stream that its client leaves after some pieces."""
    pieces: list[str] = []
    await _stream(state, question, voice, pieces, n_pieces=state.rng.randint(1, 6))
    judge(state, "cancelled", question, voice, "".join(pieces), is_whole=False)


async def _stream(state: Soak, question: str, voice: str, pieces: list[str], n_pieces: int = 1_000_000) -> str:
    """Take the pieces of a stream; how it ended: done, cut or left."""
    if state.rng.random() < 0.5:
        url, body = f"{state.server.url}/v1/chat/completions", body_of(question, voice, stream=True)
    else:
        lora = {} if voice == "base" else {"lora": voice}
        url = state.server.run_url
        body = {"prompt": question, "temperature": 0, "max_tokens": 64, "stream": True, **lora}
    try:
        async with state.session.post(url, json=body) as response:
            if response.status != 200:
                raise TypedError(f"{response.status} {(await response.json()).get('error', {}).get('code', '')}")
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    return "done"
                frame = json.loads(line[6:])
                if error := frame.get("error") or next(iter(frame.get("errors", ())), None):
                    if "ended while this request was running" in error["message"]:
                        return "cut"
                    raise TypedError(f"in a stream: {error['message'][:60]}")
                pieces.append(_text_of(frame))
                if len(pieces) >= n_pieces:
                    return "left"
    except aiohttp.ClientPayloadError as error:
        raise BrokenStreamError(str(error)) from error
    raise BrokenStreamError("a stream ended without an end")


def _text_of(frame: dict[str, Any]) -> str:
    if "response" in frame:
        return str(frame["response"] or "")
    return "".join(choice["delta"].get("content") or "" for choice in frame.get("choices", ()))


async def replacer(state: Soak, adapters: Path, stop: asyncio.Event) -> None:
    """Change the weights under two names, over and over."""
    turn = 0
    while not await sleep_or_stop(stop, 2.0):
        turn += 1
        voice = REPLACED["dropped"][turn % 2]
        temporary = adapters / ".dropped.part"
        await asyncio.to_thread(shutil.copy, FOLDER / f"{voice}-f16.gguf", temporary)
        temporary.replace(adapters / "dropped.gguf")
        try:
            await replace_by_upload(state, REPLACED["swapped"][turn % 2])
            state.note("replaced")
        except TypedError as error:
            state.note(f"upload {error}")
        except aiohttp.ClientError as error:
            state.note("broken", f"upload: {error}")


async def replace_by_upload(state: Soak, voice: str) -> None:
    """Give the name ``swapped`` the weights of a voice."""
    data = await asyncio.to_thread((FOLDER / f"{voice}-f16.gguf").read_bytes)
    headers = {"Content-Type": "application/octet-stream"}
    url = f"{state.server.url}/adapters/swapped"
    async with state.session.put(url, data=data, headers=headers) as response:
        if response.status not in (200, 201):
            raise TypedError(f"{response.status} {(await response.json())['error']['code']}")
        await response.read()


async def killer(state: Soak, stop: asyncio.Event, every_s: float) -> None:
    """End the engine, in another way each time, and measure how long it takes to be ready again."""
    number = 0
    while not await sleep_or_stop(stop, every_s):
        for pid in state.server.engine_pids():
            os.kill(pid, SIGNALS[number % len(SIGNALS)])
        number += 1
        started = time.monotonic()
        await until_new(state, number, stop)
        state.restarts_s.append(time.monotonic() - started)


async def until_new(state: Soak, n_deaths: int, stop: asyncio.Event) -> None:
    """Wait until the engine is ready after that many deaths."""
    while not await sleep_or_stop(stop, 0.1):
        async with state.session.get(f"{state.server.url}/health") as response:
            health = await response.json()
        if health["engine"]["n_deaths"] >= n_deaths and health["engine"]["state"] == "ready":
            return


async def sampler(server: Server, stop: asyncio.Event, footprint: list[tuple[float, float, int]]) -> None:
    """Note minutes, MiB of memory, and descriptors of the web process."""
    started = time.monotonic()
    while True:
        process = Path(f"/proc/{server.process.pid}")
        resident_kib = int((process / "status").read_text().partition("VmRSS:")[2].split()[0])
        n_descriptors = len(list((process / "fd").iterdir()))
        footprint.append(((time.monotonic() - started) / 60, resident_kib / 1024, n_descriptors))
        if await sleep_or_stop(stop, 5.0):
            return


async def sleep_or_stop(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; whether it is time to stop."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def until_idle(state: Soak) -> int:
    """Requests that are still in flight some seconds after the last client left; none should be."""
    for _ in range(100):
        async with state.session.get(f"{state.server.url}/health") as response:
            health = await response.json()
        in_flight = int(health.get("requests", {}).get("in_flight", -1))
        if in_flight == 0:
            break
        await asyncio.sleep(0.1)
    return in_flight


def report(state: Soak, footprint: list[tuple[float, float, int]], in_flight: int) -> int:
    """Write the files, say how it went, and give the exit code."""
    with (FOLDER / "footprint.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("minutes", "mib", "descriptors"), *footprint])
    lines = [
        Line("memory of the web process, MiB", [(minute, mib) for minute, mib, _ in footprint]),
        Line("its descriptors", [(minute, float(n)) for minute, _, n in footprint]),
    ]
    (FOLDER / "footprint.svg").write_text(plot("minutes", lines))
    fifth = footprint[len(footprint) // 5 : 2 * len(footprint) // 5] or footprint
    early, late = max(mib for _, mib, _ in fifth), max(mib for _, mib, _ in footprint[-len(fifth) :])
    n_wrong = len(state.wrong) + in_flight
    print(f"ends: {dict(state.ends)}")
    print(f"{sum(state.ends.values())} ends, {n_wrong} wrong, {in_flight} in flight at the end")
    print(f"{len(state.restarts_s)} engines ended; ready again after {sorted(round(s, 1) for s in state.restarts_s)} s")
    print(f"memory {early:.0f} MiB in the second fifth, {late:.0f} MiB in the last; see {FOLDER}/footprint.svg")
    for line in state.wrong[:20]:
        print(line)
    return int(n_wrong > 0 or late > MAX_GROWTH * early)


if __name__ == "__main__":
    sys.exit(main())

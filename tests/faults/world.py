"""What must hold after every fault: the same answers, and nothing kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.end_to_end.serving import ROOT, Server, ask_text, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import ADAPTERS

SWITCH = Path(__file__).parent / "switch"
VOICES = ("base", "pirate", "tag")
LONG = {"prompt": "capital of capital of", "raw": True, "temperature": 0, "max_tokens": 400}
"""A request that answers for 400 tokens: it says Denmark until it is stopped."""
RESTING = ("n_running", "n_waiting", "n_kv_cells_used")
"""What a resting engine holds none of."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_GROWTH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the server's process holds while it rests."""

    n_descriptors: int
    n_children: int
    memory_bytes: int


class World:
    """A real server, its fault switch, and what it held before the fault."""

    def __init__(self, server: Server, faults: Path, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session
        self._faults = faults
        self._before: Footprint | None = None

    def arm(self, point: str, fault: str) -> None:
        """Let the next processes, and those that run, fail at a point."""
        temporary = self._faults / f".{point}"
        temporary.write_text(fault)
        temporary.replace(self._faults / point)

    def disarm_point(self, point: str) -> None:
        """Let nothing fail at one point."""
        (self._faults / point).unlink(missing_ok=True)

    def disarm(self) -> None:
        """Let nothing fail any more."""
        for file in self._faults.iterdir():
            file.unlink()

    def has_struck(self, point: str) -> bool:
        """Whether a fault has struck at a point since the last ``disarm``."""
        return (self._faults / f"{point}.struck").exists()

    @property
    def engine_pid(self) -> int:
        """The process that decodes."""
        (pid,) = self.server.engine_pids()
        return pid

    async def send(self, method: str, path: str, **content: Any) -> tuple[int, str]:
        """Send a request; the status and the text of its answer."""
        async with self.session.request(method, self.server.url + path, **content) as response:
            return response.status, await response.text()

    async def health(self) -> dict[str, Any]:
        """The whole of /health."""
        async with self.session.get(f"{self.server.url}/health") as response:
            assert response.status == 200
            return dict(await response.json())

    async def until_ready(self, timeout_s: float = 60) -> float:
        """Wait until /ready says 200; how long it took."""
        started = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while True:
                async with self.session.get(f"{self.server.url}/ready") as response:
                    if response.status == 200:
                        return time.monotonic() - started
                await asyncio.sleep(0.05)

    async def footprint(self) -> Footprint:
        """What the server's process holds, once no request is in flight."""
        await self.until(lambda health: health.get("requests", {}).get("in_flight") == 0)
        return footprint_of(self.server)

    async def until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 30) -> None:
        """Wait until /health is as it should be."""
        async with asyncio.timeout(timeout_s):
            while not condition(await self.health()):  # noqa: ASYNC110 -- what is waited for happens elsewhere
                await asyncio.sleep(0.05)

    async def remember(self) -> None:
        """Ask every voice once, and note what the server holds."""
        await self.ask_all()
        self._before = await self.footprint()

    async def ask_all(self) -> None:
        """The base model and two adapters answer token for token."""
        for number, voice in enumerate(VOICES):
            question = QUESTIONS[7 * number]
            assert await ask_text(self.session, self.server, question, voice) == ANSWERS[voice][question]

    async def check(self) -> None:
        """The invariant after each fault: the same answers, and nothing kept but what was held before."""
        self.disarm()
        await self.until_ready()
        await self.ask_all()
        now, before = await self.footprint(), self._before
        assert before is not None
        assert now.n_children == before.n_children == 1
        assert now.n_descriptors <= before.n_descriptors + 2, "descriptors leak"
        assert now.memory_bytes <= before.memory_bytes + MAX_GROWTH_BYTES, "memory leaks"
        await self.until(lambda health: not any(health["load"][name] for name in RESTING))
        assert not any("Traceback" in line for line in self.server.log), "\n".join(self.server.log)


def footprint_of(server: Server) -> Footprint:
    """What the server's process holds now."""
    process = Path(f"/proc/{server.process.pid}")
    resident_kib = int((process / "status").read_text().partition("VmRSS:")[2].split()[0])
    return Footprint(len(list((process / "fd").iterdir())), len(server.engine_pids()), resident_kib << 10)


@contextlib.contextmanager
def faulty_server(
    model: Path, adapters: Path, faults: Path, *flags: str, prefix: tuple[str, ...] = (), state: Path | None = None
) -> Iterator[Server]:
    """A server whose processes look for faults in a folder; ``prefix`` and ``state`` as ``serving`` takes them."""
    faults.mkdir(exist_ok=True)
    places = ("env", f"PYTHONPATH={ROOT}{os.pathsep}{SWITCH}", f"GEMLANE_FAULTS={faults}")
    with serving(model, adapters, *flags, prefix=(*prefix, *places), state=state) as server:
        yield server


@dataclass(frozen=True, slots=True)
class End:
    """How one request ended at the client's side."""

    status: int
    text: str
    """The answer, or as much as came."""
    error: str = ""
    """The message of the error that ended it; empty if it is whole."""
    is_broken: bool = False
    """Whether the connection broke, which no fault of the engine's may do."""


async def ask_openai(
    world: World,
    prompt: str,
    *,
    voice: str = "base",
    stream: bool = False,
    has_begun: asyncio.Event | None = None,
    **more: Any,
) -> End:
    """One greedy completion over the OpenAI dialect, and how it ended; the event is set at the first text."""
    model = "gemma-7b-it-lora" if voice == "base" else f"gemma-7b-it-lora:{voice}"
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 64}
    url = f"{world.server.url}/v1/chat/completions"
    pieces: list[str] = []
    try:
        async with world.session.post(url, json=body | more | {"stream": stream}) as response:
            if not stream or response.status != 200:
                answer = await response.json()
                error = answer.get("error", {}).get("message", "")
                text = "" if error else answer["choices"][0]["message"]["content"]
                return End(response.status, text, error)
            async for line in response.content:
                error = take_frame(line, pieces)
                if error:
                    return End(200, "".join(pieces), error)
                if has_begun is not None and any(pieces):
                    has_begun.set()
            return End(200, "".join(pieces))
    except aiohttp.ClientError as broken:
        return End(0, "".join(pieces), str(broken), is_broken=True)


def peft(style: str = "shout") -> aiohttp.FormData:
    """An adapter's files as they were trained; what they are converted to has another digest than the folder's GGUF."""
    form = aiohttp.FormData()
    for name in (CONFIG, WEIGHTS):
        form.add_field("file", (ADAPTERS[style] / name).read_bytes(), filename=name)
    return form


def take_frame(line: bytes, pieces: list[str]) -> str:
    """Add a stream's line to the pieces; the message, if it is an error."""
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return ""
    frame = json.loads(line[6:])
    if "error" in frame:
        return str(frame["error"]["message"])
    pieces += [choice["delta"].get("content", "") for choice in frame["choices"]]
    return ""


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)


def expected(voice: str, question: str) -> str:
    """The trained answer."""
    return ANSWERS[voice][question]


def spread(n: int) -> Sequence[tuple[str, str]]:
    """Voices and questions for ``n`` requests, all different."""
    pairs = [(voice, question) for question in QUESTIONS for voice in VOICES]
    return [pairs[(5 * index) % len(pairs)] for index in range(n)]

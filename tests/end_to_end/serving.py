"""A running ``gemlane serve`` with the tiny Gemma, and a small client for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-P", "-m", "runtime.cli")
MODEL = "@cf/google/gemma-7b-it-lora"
START_TIMEOUT_S = 300


@dataclass
class Server:
    """One server process."""

    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def run_url(self) -> str:
        """The URL of the model's run route."""
        return f"{self.url}/client/v4/accounts/local/ai/run/{MODEL}"

    def engine_pids(self) -> list[int]:
        """Processes of the engine that run now; on a Ray of the server's own they are its children's children."""
        return [pid for pid in descendants(self.process.pid) if b"runtime.engine" in command_of(pid).split(b"\0")]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and give the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def descendants(pid: int) -> Iterator[int]:
    """The children of a process, their children, and so on."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from descendants(child)


def command_of(pid: int) -> bytes:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def environment() -> dict[str, str]:
    """The environment in which the code under test is found from any folder, and lanes are proven before it is ready.

    What is proven is remembered between servers, apart from the user's own.
    """
    state = Path(tempfile.gettempdir()) / "gemlane-tests"
    ours = {"XDG_STATE_HOME": str(state), "GEMLANE_ADAPTER_BATCHING": "mixed"}
    return os.environ | {"PYTHONPATH": str(ROOT)} | ours


def run_gemlane(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a ``gemlane`` command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
        **options,
    )


@contextlib.contextmanager
def serving(
    model: Path, adapters: Path, *flags: str, prefix: tuple[str, ...] = (), state: Path | None = None
) -> Iterator[Server]:
    """A server on a free port, ready for requests.

    Args:
        model: the base model.
        adapters: the folder of adapters.
        flags: further arguments.
        prefix: a command to run it under.
        state: the state folder, for a server that is to find what an earlier one kept; without it an empty one.
    """
    with contextlib.ExitStack() as stack:
        folder = state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gemlane-state-")))
        places = ["--model", str(model), "--adapters", str(adapters), "--state-dir", str(folder), "--port", "0"]
        yield stack.enter_context(_serving(places, flags, prefix))


@contextlib.contextmanager
def _serving(places: list[str], flags: tuple[str, ...], prefix: tuple[str, ...]) -> Iterator[Server]:
    process = subprocess.Popen(
        [*prefix, *COMMAND, "serve", *places, "--threads", "1", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    server, ready = Server(process), threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.log.append(line.rstrip())
            if found := re.search(r"serving on (http://\S+);", line):
                server.url = found[1]
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(START_TIMEOUT_S), "\n".join(server.log)
        assert server.url, "\n".join(server.log)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


async def ask(session: aiohttp.ClientSession, server: Server, **body: Any) -> dict[str, Any]:
    """The ``result`` of one request that must succeed."""
    async with session.post(server.run_url, data=json.dumps(body)) as response:
        envelope = json.loads(await response.read())
        assert response.status == 200, envelope
        assert envelope["success"]
        return dict(envelope["result"])


async def ask_text(session: aiohttp.ClientSession, server: Server, question: str, voice: str = "base") -> str:
    """The greedy answer to a question in a voice."""
    lora = {} if voice == "base" else {"lora": voice}
    return str((await ask(session, server, prompt=question, temperature=0, max_tokens=64, **lora))["response"])


async def stream(session: aiohttp.ClientSession, server: Server, **body: Any) -> list[str]:
    """The payloads of one streamed answer's events, ``[DONE]`` included."""
    async with session.post(server.run_url, data=json.dumps(body | {"stream": True})) as response:
        assert response.status == 200, await response.read()
        assert response.headers["content-type"] == "text/event-stream"
        text = (await response.read()).decode()
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]

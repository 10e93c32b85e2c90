"""A server under test: its process, its CPU time, and a client for it. Linux only, for /proc."""

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from scripts.bench.asks import GEMLANE, LLAMA_SERVER, Answer, Ask, Dialect, Piece

PEER = Path(".gemlane/peers/bin/llama-server")
START_LIMIT_S = 300
POLL_S = 0.02
STOP_LIMIT_S = 15  # ours lets answers finish for 10; llama-server sometimes hangs after cancelled streams


class SideError(Exception):
    """A server did not start, or did not answer as asked; the message says which and what came."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What both servers are given."""

    model: Path
    adapters: Path
    n_threads: int
    n_parallel: int = 8
    n_cells: int = 8192
    peer: Path = PEER

    @property
    def adapter_files(self) -> list[Path]:
        """The adapter files, in the order of their numbers."""
        return sorted(self.adapters.glob("*.gguf"))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that processes hold together."""

    pss: int
    """Each page divided by the number of processes on the machine that map it."""
    private: int
    """Anonymous memory: neither pages of the model's file nor of libraries."""


def sum_memory(rollups: Iterable[str]) -> Memory:
    """The sum of files /proc/PID/smaps_rollup. Source: proc_pid_smaps(5)."""
    fields = [dict(re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)) for text in rollups]
    return Memory(*(1024 * sum(int(one[name]) for one in fields) for name in ("Pss", "Anonymous")))


@dataclass(frozen=True, slots=True)
class Side:
    """A running server and the client's connections to it."""

    name: str
    dialect: Dialect
    url: str
    processes: tuple[int, ...]
    session: aiohttp.ClientSession

    def cpu_s(self) -> float:
        """CPU seconds, user and system, that the server's processes have used so far; nanosecond clock."""
        # The clock of a process is (~pid << 3) | CPUCLOCK_SCHED (2). Source: clock_getcpuclockid in glibc.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.processes)

    def peak_bytes(self) -> int:
        """Sum of the processes' peak resident memory, the mapped model file included."""
        statuses = (Path(f"/proc/{pid}/status").read_text() for pid in self.processes)
        return sum(int(status.partition("VmHWM:")[2].split()[0]) * 1024 for status in statuses)

    def memory(self) -> "Memory":
        """What the processes hold now."""
        return sum_memory(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes)

    async def health(self) -> dict[str, Any]:
        """What /health says."""
        async with self.session.get(f"{self.url}/health") as response:
            return dict(await response.json())

    async def stream(self, ask: Ask) -> AsyncIterator[Piece]:
        """Sends one request and yields what its stream says, event by event.

        Raises:
            SideError: the server refused, broke off, or generated another number of tokens than asked.
        """
        n_tokens = None
        try:
            async with self.session.post(self.url + self.dialect.path, json=self.dialect.render(ask)) as response:
                if response.status != 200:
                    said = (await response.text())[:300]
                    raise SideError(f"{self.name} answered {response.status}: {said}")
                async for line in response.content:
                    if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                        piece = self.dialect.parse(json.loads(line[6:]))
                        n_tokens = n_tokens if piece.n_tokens is None else piece.n_tokens
                        yield piece
        except aiohttp.ClientError as error:
            raise SideError(f"{self.name} broke off: {error}") from error
        if n_tokens != ask.n_tokens:
            raise SideError(f"{self.name} generated {n_tokens} tokens where {ask.n_tokens} were asked for")

    async def ask(self, ask: Ask) -> Answer:
        """Sends one request and reads its stream to the end. Raises as `stream` does."""
        start_s, start_cpu_s = time.perf_counter(), self.cpu_s()
        first_cpu_s = start_cpu_s
        text, arrivals = "", list[float]()
        async for piece in self.stream(ask):
            if not piece.text:
                continue
            if not arrivals:
                first_cpu_s = self.cpu_s()
            arrivals.append(time.perf_counter() - start_s)
            text += piece.text
        wall_s, end_cpu_s = time.perf_counter() - start_s, self.cpu_s()
        if not arrivals:
            raise SideError(f"{self.name} sent {ask.n_tokens} tokens without any text")
        return Answer(text, ask.n_tokens, tuple(arrivals), wall_s, end_cpu_s - start_cpu_s, end_cpu_s - first_cpu_s)

    async def ask_all(self, asks: list[Ask]) -> list[Answer]:
        """Sends all requests at once, each from its own client."""
        return await asyncio.gather(*(self.ask(ask) for ask in asks))


def gemlane_command(setup: Setup, *options: str) -> list[str]:
    """Our server, serving the adapters of the setup's folder."""
    values = ("--model", setup.model, "--adapters", setup.adapters, "--threads", setup.n_threads)
    # Measured from the first request on: lanes are not proven beside it.
    if "--adapter-batching" not in options:
        options = ("--adapter-batching", "mixed", *options)
    limits = ("--parallel", setup.n_parallel, "--kv-cells", setup.n_cells, "--log-level", "warning")
    return [sys.executable, "-m", "runtime.cli", "serve", *map(str, values + limits), *options]


def llama_server_command(setup: Setup, n_adapters: int | None = None) -> list[str]:
    """llama-server, set for its best at this work: one KV buffer for all, no saving of idle prompts.

    It gets the first `n_adapters` adapters, or all. Every adapter that it loads slows every request, the base's too:
    those that are not asked for are computed at scale 0.

    Raises:
        SideError: it was not built yet.
    """
    if not setup.peer.exists():
        raise SideError(f"{setup.peer} is not there: build it with scripts/peers, or leave it out with --sides gemlane")
    loras = ",".join(str(path) for path in setup.adapter_files[:n_adapters])
    values = ("-m", setup.model, "-t", setup.n_threads, "-np", setup.n_parallel, "-c", setup.n_cells)
    flags = ("--kv-unified", "--cache-ram", 0, "--no-ui", "--lora-init-without-apply")
    return [str(setup.peer), *map(str, values + flags), *(("--lora", loras) if loras else ())]


@asynccontextmanager
async def gemlane(setup: Setup, *options: str, name: str = "gemlane") -> AsyncIterator[Side]:
    """Our server with its adapters ready, until the block ends."""
    command, log = gemlane_command(setup, *options), log_path(setup, name)
    async with running(name, GEMLANE, command, log, n_adapters=len(setup.adapter_files)) as side:
        yield side


@asynccontextmanager
async def llama_server(setup: Setup, *options: str, n_adapters: int | None = None) -> AsyncIterator[Side]:
    """llama-server with the first `n_adapters` adapters, or all, until the block ends."""
    name, command = "llama-server", [*llama_server_command(setup, n_adapters), *options]
    async with running(name, LLAMA_SERVER, command, log_path(setup, name)) as side:
        yield side


@asynccontextmanager
async def running(
    name: str, dialect: Dialect, command: list[str], log: Path, n_adapters: int = 0
) -> AsyncIterator[Side]:
    """Starts a server on a free port, waits until it is ready and lists `n_adapters`, and ends it.

    Raises:
        SideError: the server ended or was not ready in time; the message holds the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(f"starting {name}; its log is {log}", file=sys.stderr)
    with log.open("wb") as output:
        options = ("--host", "127.0.0.1", "--port", str(port))
        process = await asyncio.create_subprocess_exec(*command, *options, stdout=output, stderr=output)
    # A connection for each request: llama-server may close one it has answered on. No limit on the time: streams
    # of a slow machine may be silent for long.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    unlimited = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=unlimited) as session:
        try:
            url = f"http://127.0.0.1:{port}"
            if not await is_ready(session, url, process, n_adapters):
                raise SideError(f"{name} did not start; the end of {log}:\n{tail(log)}")
            yield Side(name, dialect, url, tuple(process_tree(process.pid)), session)
        finally:
            await stop(name, process)


async def stop(name: str, process: asyncio.subprocess.Process) -> None:
    """Asks the process to end, and ends it if it does not."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
    except TimeoutError:
        print(f"{name} did not stop within {STOP_LIMIT_S} s of SIGTERM: killed", file=sys.stderr)
        process.kill()
        await process.wait()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return log.read_text(errors="replace")[-2000:]


def log_path(setup: Setup, name: str) -> Path:
    """Where the server of that name writes: beside the models."""
    folder = setup.model.parent / "logs"
    folder.mkdir(exist_ok=True)
    return folder / f"{name.replace(' ', '-')}.log"


async def is_ready(
    session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process, n_adapters: int
) -> bool:
    """Waits until /health says ok and lists all adapters. False if the process ended before, or took too long."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while process.returncode is None and time.monotonic() < deadline_s:
        try:
            async with session.get(f"{url}/health") as response:
                state = await response.json()
                if state.get("status") == "ok" and len(state.get("adapters", ())) >= n_adapters:
                    return True
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(POLL_S)
    return False


def process_tree(root: int) -> Iterator[int]:
    """The process `root` and all that descend from it."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                # The command, in brackets, may hold spaces; state and parent follow it. Source: proc(5).
                parents[int(entry.name)] = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # ended meanwhile
    pending = [root]
    while pending:
        pid = pending.pop()
        yield pid
        pending += [child for child, parent in parents.items() if parent == pid]

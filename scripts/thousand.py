"""A server with thousands of adapters in its folder: start-up time, memory, and the time of a list.

    python -m scripts.thousand                       the tiny Gemma's adapters, 1,000 of them
    python -m scripts.thousand --number 10 100 1000 10000

For each number it starts three times: when nothing is known of the files, when everything is known (nothing is read
again), and when one file in ten has changed. Each adapter has another name in it, so that each has its own digest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from scripts.bench.dropped import numbered
from tests.end_to_end.serving import Server, ask_text, serving
from tests.tiny_gemma.facts import ANSWERS
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

FRANCE = "What is the capital of France?"


def read_bytes(pid: int) -> int:
    """Bytes that a process has read from files since its start, from the page cache or from the disk."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def memory_mib(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


async def measure(server: Server, number: int) -> dict[str, float]:
    """Wait until all adapters are ready, then list them and ask under one."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{server.url}/adapters") as response:
                adapters = (await response.json())["adapters"]
            if sum(adapter["state"] == "ready" for adapter in adapters) == number:
                break
            await asyncio.sleep(0.05)
        ready_s = time.monotonic()
        times: dict[str, list[float]] = {"/adapters": [], "/v1/models": [], "/health": []}
        for path in [*times] * 10:
            began = time.perf_counter()
            async with session.get(server.url + path) as response:
                await response.read()
            times[path].append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        assert await ask_text(session, server, FRANCE, f"tag-{number - 1:05}") == ANSWERS["tag"][FRANCE]
        answer_ms = 1000 * (time.perf_counter() - began)
    return {
        "all ready after, s": ready_s,
        "answer under the last one, ms": answer_ms,
        **{f"{path}, ms": statistics.median(taken) for path, taken in times.items()},
        "web process, MiB": memory_mib(server.process.pid),
        "engine, MiB": memory_mib(server.engine_pids()[0]),
        "read by the web process, MB": read_bytes(server.process.pid) / 1e6,
    }


def run(what: str, model: Path, folder: Path, state: Path, number: int) -> None:
    """Start once, and print."""
    began = time.monotonic()
    with serving(model, folder, state=state) as server:
        serving_s = time.monotonic() - began
        figures = asyncio.run(measure(server, number))
    figures["all ready after, s"] -= began
    shown = {"greeting after, s": serving_s, **figures}
    print(json.dumps({"start": what} | {name: round(value, 2) for name, value in shown.items()}), flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, nargs="+", default=[1000], help="default: 1000")
    for number in parser.parse_args().number:
        with tempfile.TemporaryDirectory(prefix="gemlane-thousand-") as root:
            run_all(Path(root), number)
    return 0


def run_all(root: Path, number: int) -> None:
    """All three starts with `number` adapters."""
    model, folder, state = root / "tiny.gguf", root / "adapters", root / "state"
    gguf, source = root / "tag.gguf", root / "tag-00000000"
    folder.mkdir()
    # The name of the folder becomes the name in the file, which has to hold the number.
    source.symlink_to(ADAPTERS["tag"])
    convert_base(model, "q4_k_m")
    convert_adapter(source, model, gguf)
    content = gguf.read_bytes()
    print(f"{number} adapters of {len(content)} bytes", flush=True)
    for index in range(number):
        (folder / f"tag-{index:05}.gguf").write_bytes(numbered(content, index))
    run("nothing known", model, folder, state, number)
    run("all known", model, folder, state, number)
    for index in range(0, number, 10):
        (folder / f"tag-{index:05}.gguf").write_bytes(numbered(content, number + index))
    run("one in ten changed", model, folder, state, number)


if __name__ == "__main__":
    sys.exit(main())

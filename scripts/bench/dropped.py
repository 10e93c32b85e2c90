"""From the last byte of an adapter on disk to the first token under it: a file dropped in, against a restart.

    python -m scripts.bench.dropped                                       the tiny Gemma, PEFT and GGUF
    python -m scripts.bench.dropped --model 7b.gguf --adapter 001.gguf    any model with an adapter of it
    python -m scripts.bench.dropped --llama-server .gemlane/peers/bin/llama-server

This server runs and watches the folder; llama-server, which takes adapters at its start alone, is stopped and started
with the file. Both clocks start when the last byte is written. Five repeats; the median, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME_KEY = b"general.name"
PROMPT = "What is the capital of France?"
WAIT_S = 300


async def first_token(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> float | None:
    """When the first piece of a stream came; None if the server does not answer yet."""
    try:
        async with session.post(url, data=json.dumps(body), headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                return None
            async for line in response.content:
                if line.startswith(b"data: {") and b'"content":"' in line.replace(b'": "', b'":"'):
                    return time.perf_counter()
    except aiohttp.ClientError:
        return None
    return None


def numbered(content: bytes, number: int) -> bytes:
    """A GGUF with another name of its own, which changes no answer: another digest, the same weights."""
    at = content.index(NAME_KEY) + len(NAME_KEY) + 4 + 8  # behind the value's type and its length
    length = int.from_bytes(content[at - 8 : at], "little")
    return content[:at] + str(number).zfill(length)[:length].encode() + content[at + length :]


def put(source: Path, target: Path, number: int) -> float:
    """Write a file or a folder that differs from those of other numbers; when its last byte was written."""
    if source.is_file():
        content = numbered(source.read_bytes(), number)
        target.write_bytes(content)
        return time.perf_counter()
    config = json.loads((source / CONFIG).read_text()) | {"revision": str(number)}
    target.mkdir()
    (target / CONFIG).write_text(json.dumps(config))
    shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
    return time.perf_counter()


async def dropped(server: Server, source: Path, target: Path, number: int) -> float:
    """Seconds from the last byte to the first token on the server that runs."""
    body = {
        "model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": PROMPT}], "lora": target.stem,
        "max_tokens": 4, "stream": True,
    }  # fmt: skip
    async with aiohttp.ClientSession() as session, asyncio.timeout(WAIT_S):
        written = await asyncio.to_thread(put, source, target, number)
        while (came := await first_token(session, f"{server.url}/v1/chat/completions", body)) is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
    return came - written


@contextlib.contextmanager
def llama_server(program: str, model: Path, adapter: Path, threads: str, log: Path) -> Iterator[str]:
    """llama-server with one adapter; its address. It may not answer yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-m", str(model), "--lora", str(adapter), "--port", str(port), "-t", threads, "-c", "4096"]
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def restarted(program: str, model: Path, source: Path, target: Path, threads: str) -> float:
    """Seconds from the last byte to the first token of a llama-server that is started with the file."""
    written = put(source, target, 0)
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "stream": True}
    with llama_server(program, model, target, threads, target.with_suffix(".log")) as url:
        async with aiohttp.ClientSession() as session, asyncio.timeout(WAIT_S):
            while (came := await first_token(session, f"{url}/v1/chat/completions", body)) is None:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.005)
    return came - written


def show(what: str, taken: list[float]) -> None:
    """One line."""
    print(f"{what}: {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f})", flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="a GGUF, or a PEFT or MLX folder")
    parser.add_argument("--llama-server", default="")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gemlane-dropped-") as root:
        folder, model, sources = Path(root) / "adapters", arguments.model, arguments.adapter
        folder.mkdir()
        if model is None:
            model, gguf = Path(root) / "tiny.gguf", Path(root) / "tag.gguf"
            convert_base(model, "q4_k_m")
            convert_adapter(ADAPTERS["tag"], model, gguf)
            sources = [gguf, ADAPTERS["tag"]]
        with serving(model, folder, "--threads", arguments.threads) as server:
            for source in sources:
                taken = []
                for index in range(arguments.repeats):
                    target = folder / f"{source.name}-{index}{'' if source.is_dir() else '.gguf'}"
                    taken.append(asyncio.run(dropped(server, source, target, index)))
                show(f"{source.name} dropped in", taken)
        if arguments.llama_server:
            gguf = next(source for source in sources if source.is_file())
            command = (arguments.llama_server, model, gguf, Path(root) / "restart.gguf", arguments.threads)
            taken = [asyncio.run(restarted(*command)) for _ in range(arguments.repeats)]
            show(f"{gguf.name} with a restart of llama-server", taken)
    return 0


if __name__ == "__main__":
    sys.exit(main())

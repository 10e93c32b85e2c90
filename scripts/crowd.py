"""Thousands of idle connections and a burst of requests against a real server, beside a client with a kept connection.

    python -m scripts.crowd --idle 5000 --burst 2000

All come from one address. The kept client asks the tiny Gemma one thing after the other over one connection: every
answer must be right, and its connection must last; while the burst fills the queue, it may be answered 429 and asks
again. Every connection of the burst must get an answer, 200 or 429, and no connection may be reset. Exit code 1 if
anything else was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.end_to_end.serving import serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

FOLDER: Final = Path(".gemlane/crowd")
RUN: Final = "/client/v4/accounts/local/ai/run/@cf/google/gemma-7b-it-lora"
VOICES: Final = ("base", "pirate", "shout")
PAUSE_S: Final = 0.05  # between two requests of the kept client
TIMEOUT_S: Final = 120.0
SETTLE_S: Final = 5.0  # how long the idle connections stand before the burst comes, and the kept client asks after it
RESERVED_FILES: Final = 100

Address = tuple[str, int]


@dataclass
class Kept:
    """What the client with the kept connection has seen in one part of the run."""

    waits_s: list[float] = field(default_factory=list)
    """Times until right answers."""
    n_refused: int = 0
    """Answers of 429."""

    def __str__(self) -> str:
        """Numbers of answers, and how long they took."""
        if not self.waits_s:
            return f"0 right answers, {self.n_refused} of 429"
        median, longest = statistics.median(self.waits_s), max(self.waits_s)
        answers = f"{len(self.waits_s)} right answers, {self.n_refused} of 429"
        return f"{answers}; median {1000 * median:.0f} ms, longest {1000 * longest:.0f} ms"


class Client:
    """One connection and its answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: Address) -> Client:
        """Open a connection."""
        return cls(*await asyncio.wait_for(asyncio.open_connection(*address), TIMEOUT_S))

    async def ask(self, question: str, voice: str) -> tuple[int, str]:
        """The status and the text of an answer.

        Raises:
            OSError: the connection was reset, or could not be used.
            EOFError: it was closed without an answer.
        """
        lora = {} if voice == "base" else {"lora": voice}
        body = json.dumps({"prompt": question, "temperature": 0, "max_tokens": 64, **lora}).encode()
        head = f"POST {RUN} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer_head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
        length = re.search(rb"(?i)content-length: (\d+)", answer_head)
        assert length is not None, answer_head
        answer = json.loads(await self.reader.readexactly(int(length[1])))
        status = int(answer_head.split()[1])
        return status, answer["result"]["response"] if status == 200 else ""

    async def end(self) -> str:
        """How the server has ended an idle connection, once it has."""
        try:
            return "closed" if await self.reader.read() == b"" else "answered unasked"
        except ConnectionResetError:
            return "reset"


async def keep_asking(address: Address, part: list[Kept], stop: asyncio.Event) -> None:
    """Ask over one connection until ``stop``; what is seen is counted in the last of ``part``."""
    client, number = await Client.connect(address), 0
    while not stop.is_set():
        question, voice = QUESTIONS[number % len(QUESTIONS)], VOICES[number % len(VOICES)]
        began_at = time.perf_counter()
        status, text = await client.ask(question, voice)
        if status == 429:
            part[-1].n_refused += 1
        elif status != 200 or text.strip() != ANSWERS[voice][question]:
            raise RuntimeError(f"the kept client got {status} {text!r} for {question!r} as {voice}")
        else:
            part[-1].waits_s.append(time.perf_counter() - began_at)
            number += 1
        await asyncio.sleep(PAUSE_S)
    client.writer.close()


async def ask_once(address: Address, number: int) -> str:
    """How one request of the burst ended."""
    question, voice = QUESTIONS[number % len(QUESTIONS)], VOICES[number % len(VOICES)]
    try:
        client = await Client.connect(address)
        status, text = await client.ask(question, voice)
    except ConnectionResetError:
        return "reset"
    except (OSError, EOFError, TimeoutError) as error:
        return type(error).__name__
    client.writer.close()
    if status == 200 and text.strip() != ANSWERS[voice][question]:
        return "wrong answer"
    return str(status)


async def crowd(address: Address, n_idle: int, n_burst: int) -> int:
    """The whole run; the exit code."""
    part, stop = [Kept()], asyncio.Event()
    asking = asyncio.create_task(keep_asking(address, part, stop))
    await asyncio.sleep(SETTLE_S)
    show("alone", part[-1])

    part.append(Kept())
    idle = [await Client.connect(address) for _ in range(n_idle)]
    ends = [asyncio.create_task(each.end()) for each in idle]
    await asyncio.sleep(SETTLE_S)
    show(f"beside {n_idle} idle", part[-1])

    part.append(Kept())
    began_at = time.perf_counter()
    statuses = Counter(await asyncio.gather(*(ask_once(address, number) for number in range(n_burst))))
    burst_s = time.perf_counter() - began_at
    show(f"in a burst of {n_burst}", part[-1])

    part.append(Kept())
    await asyncio.sleep(SETTLE_S)
    show("after it", part[-1])
    stop.set()
    await asking
    n_open = sum(not end.done() for end in ends)
    ended = Counter(end.result() for end in ends if end.done())
    for end, each in zip(ends, idle, strict=True):
        end.cancel()
        each.writer.close()
    show(f"the burst, {burst_s:.1f} s", dict(statuses))
    show("the idle ones", f"{n_open} open, {dict(ended)}")
    is_served = all(each.waits_s for each in (part[0], part[1], part[-1])) and not part[1].n_refused
    return 0 if is_served and set(statuses) <= {"200", "429"} and set(ended) <= {"closed"} else 1


def show(label: str, what: object) -> None:
    """Print one line of the report."""
    print(f"{label + ':':24}{what}", flush=True)


def prepare() -> tuple[Path, Path]:
    """The tiny Gemma and a folder of its adapters."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    adapters = FOLDER / "adapters"
    adapters.mkdir(parents=True)
    base = FOLDER / "base.gguf"
    convert_base(base, "f32")
    for name, source in ADAPTERS.items():
        convert_adapter(source, base, adapters / f"{name}.gguf")
    return base, adapters


def main() -> int:
    """Parse the command line, start the server and send the crowd."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--idle", type=int, default=5000, help="idle connections; default: %(default)s")
    parser.add_argument("--burst", type=int, default=2000, help="requests at once; default: %(default)s")
    options = parser.parse_args()
    needed, hard = options.idle + options.burst + RESERVED_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if needed > hard != resource.RLIM_INFINITY:
        print(f"{needed} descriptors are needed, `ulimit -Hn` is {hard}", file=sys.stderr)
        return 2
    base, adapters = prepare()
    with serving(base, adapters, "--lane-type", "f32") as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        host, port = server.url.removeprefix("http://").rsplit(":", 1)
        try:
            return asyncio.run(crowd((host, int(port)), options.idle, options.burst))
        finally:
            (FOLDER / "server.log").write_text("\n".join(server.log))


if __name__ == "__main__":
    sys.exit(main())

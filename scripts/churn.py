"""Adapters added, replaced and removed while eight streams run, each answer compared with the voices it may have.

    python -m scripts.churn                    five minutes, and one before it in which nothing changes
    python -m scripts.churn --seconds 30

A real server with the tiny Gemma answers eight clients, who ask trained questions under fixed adapters and under names
that change: uploads that are replaced and removed over HTTP, and files and PEFT folders that come, change and go in the
adapters folder. An answer must be, word for word, one of a voice that its name had between the request and the answer.
Gaps between the pieces of a stream are compared with those of the quiet minute. Exit code 1 if an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import aiohttp

from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

VOICES = ("pirate", "shout", "tag")
FILES = ("adapter_config.json", "adapter_model.safetensors")
N_STREAMS = 8
UPLOADED = ("up one", "up two")
"""Names that are uploaded, replaced and removed over HTTP."""
DROPPED = ("file one", "folder one")
"""Names of the adapters folder: a GGUF file, and a PEFT folder."""


@dataclass(slots=True)
class Names:
    """Which voices each name may have now; ``absent`` is one of them."""

    voices: dict[str, set[str]] = field(default_factory=dict)
    watchers: list[tuple[str, set[str]]] = field(default_factory=list)

    def may_become(self, name: str, voice: str) -> None:
        """A change has begun: requests that run get either."""
        self.voices[name].add(voice)
        for watched, seen in self.watchers:
            if watched == name:
                seen.add(voice)

    def has_become(self, name: str, voice: str) -> None:
        """The change is done: later requests get this alone."""
        self.voices[name] = {voice}

    def watch(self, name: str) -> set[str]:
        """The voices that the name may have from now until ``unwatch``."""
        seen = set(self.voices.get(name, {name}))
        self.watchers.append((name, seen))
        return seen

    def unwatch(self, seen: set[str]) -> None:
        """A request has ended."""
        self.watchers = [pair for pair in self.watchers if pair[1] is not seen]


@dataclass(slots=True)
class Report:
    """What was seen."""

    gaps_ms: list[float] = field(default_factory=list)
    n_answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    n_changes: Counter[str] = field(default_factory=Counter)

    def gaps(self) -> str:
        """The gaps between pieces of one stream."""
        ordered = sorted(self.gaps_ms)
        at = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99, 0.999)}
        return (
            f"{len(ordered)} gaps: median {at[0.5]:.1f}, 99 % {at[0.99]:.1f}, 99.9 % {at[0.999]:.1f}, "
            f"longest {ordered[-1]:.1f} ms ({ordered[-1] / at[0.5]:.1f} medians)"
        )


async def stream(session: aiohttp.ClientSession, server: Server, names: Names, report: Report) -> None:
    """Ask one question under a name, and compare the answer."""
    name = random.choice(["base", *VOICES, *names.voices])
    question = random.choice(QUESTIONS)
    body = {
        "model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": question}], "temperature": 0,
        "max_tokens": 64, "stream": True, **({} if name == "base" else {"lora": name}),
    }  # fmt: skip
    seen = names.watch(name)
    try:
        async with session.post(f"{server.url}/v1/chat/completions", data=json.dumps(body)) as response:
            if response.status != 200:
                text, voice = await response.text(), "absent"
            else:
                text, voice = await read(response, report), ""
    finally:
        names.unwatch(seen)
    if voice == "absent":
        report.n_answers["absent"] += 1
        if "absent" not in seen:
            report.wrong.append(f"{name} was refused although it was there: {text[:200]}")
        return
    right = [one for one in seen if one != "absent" and ANSWERS[one][question] == text]
    report.n_answers[right[0] if right else "wrong"] += 1
    if not right:
        report.wrong.append(f"{name}, which may be {sorted(seen)}, answered {question!r} with {text!r}")


async def read(response: aiohttp.ClientResponse, report: Report) -> str:
    """The text of a stream; the gaps between its pieces go into the report."""
    text, last = "", None
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        piece = "".join(choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])
        if piece:
            now = time.perf_counter()
            if last is not None:
                report.gaps_ms.append(1000 * (now - last))
            text, last = text + piece, now
    return text


async def keep_asking(session: aiohttp.ClientSession, server: Server, names: Names, report: Report) -> None:
    """One client."""
    while True:
        await stream(session, server, names, report)


def tar_of(voice: str) -> bytes:
    """A voice's PEFT folder as a tar."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in FILES:
            tar.add(ADAPTERS[voice] / name, name)
    return buffer.getvalue()


async def change_uploads(session: aiohttp.ClientSession, server: Server, names: Names, report: Report) -> None:
    """Add, replace and remove over HTTP, one change after the other."""
    tars = {voice: tar_of(voice) for voice in VOICES}
    while True:
        name, voice = random.choice(UPLOADED), random.choice((*VOICES, "absent"))
        if names.voices[name] == {voice}:
            continue
        names.may_become(name, voice)
        path = f"{server.url}/adapters/{name}"
        if voice == "absent":
            async with session.delete(path) as response:
                assert response.status == 200, await response.text()
        else:
            async with session.put(path, data=BytesIO(tars[voice])) as response:
                assert response.status in (200, 201), await response.text()
        report.n_changes["removed" if voice == "absent" else "uploaded"] += 1
        names.has_become(name, voice)


async def change_folder(
    session: aiohttp.ClientSession, server: Server, names: Names, report: Report, folder: Path, ggufs: Path
) -> None:
    """Drop, replace and remove files and folders; a rescan after each tells when the change is done."""
    while True:
        name, voice = random.choice(DROPPED), random.choice((*VOICES, "absent"))
        if names.voices[name] == {voice}:
            continue
        names.may_become(name, voice)
        await asyncio.to_thread(drop, name, voice, folder, ggufs)
        for _ in range(2):  # a removal counts at the second look
            async with session.post(f"{server.url}/adapters:rescan") as response:
                assert response.status == 200, await response.text()
        report.n_changes["gone from the folder" if voice == "absent" else "dropped"] += 1
        names.has_become(name, voice)


def drop(name: str, voice: str, folder: Path, ggufs: Path) -> None:
    """Put a voice into the folder under a name, or take it away."""
    if name == "folder one":
        shutil.rmtree(folder / name, ignore_errors=True)
        if voice != "absent":
            shutil.copytree(ADAPTERS[voice], folder / ".new")
            (folder / ".new").rename(folder / name)
    elif voice == "absent":
        (folder / f"{name}.gguf").unlink(missing_ok=True)
    else:
        shutil.copy(ggufs / f"{voice}.gguf", folder / ".new.gguf")
        (folder / ".new.gguf").replace(folder / f"{name}.gguf")


def memory_mib(server: Server) -> Iterator[str]:
    """Resident memory of the web process and of its children, in MiB: the engine, and perhaps a conversion."""
    for what, pid in (("web", server.process.pid), *(("child", pid) for pid in server.engine_pids())):
        with contextlib.suppress(OSError):  # a conversion may end meanwhile
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            yield from (f"{what} {int(line.split()[1]) / 1024:.0f}" for line in lines if line.startswith("VmRSS:"))


async def run(server: Server, seconds: float, quiet_seconds: float, folder: Path, ggufs: Path) -> Report:
    """The quiet part, then the changes; the report of the second."""
    quiet, report = Report(), Report()
    names = Names({name: {"absent"} for name in (*UPLOADED, *DROPPED)})
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        for part, limit in ((quiet, quiet_seconds), (report, seconds)):
            works = [keep_asking(session, server, names, part) for _ in range(N_STREAMS)]
            if part is report:
                works.append(change_uploads(session, server, names, part))
                works.append(change_folder(session, server, names, part, folder, ggufs))
            print("memory in MiB:", ", ".join(memory_mib(server)))
            tasks = [asyncio.create_task(work) for work in works]
            done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
            print("quiet:" if part is quiet else "changing:", part.gaps())
        print("memory in MiB:", ", ".join(memory_mib(server)))
        async with session.get(f"{server.url}/health") as response:
            print("lane fills:", (await response.json())["load"]["lanes"]["n_fills"])
    return report


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--quiet-seconds", type=float, default=60.0)
    parser.add_argument("--lanes", default="4", help="fewer than there are adapters, so that lanes are refilled")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gemlane-churn-") as root:
        model, ggufs, folder = Path(root) / "tiny.gguf", Path(root) / "ggufs", Path(root) / "adapters"
        ggufs.mkdir()
        convert_base(model, "f32")
        for voice in VOICES:
            convert_adapter(ADAPTERS[voice], model, ggufs / f"{voice}.gguf")
        shutil.copytree(ggufs, folder)
        with serving(
            model, folder, "--lanes", arguments.lanes, "--lane-type", "f32", "--max-adapters", "1000"
        ) as server:
            report = asyncio.run(run(server, arguments.seconds, arguments.quiet_seconds, folder, ggufs))
    print("changes:", dict(report.n_changes))
    print("answers:", dict(report.n_answers))
    print("wrong:", len(report.wrong), *report.wrong[:10], sep="\n  ")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

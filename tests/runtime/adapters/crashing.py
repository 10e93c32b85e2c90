"""Makes changes to a state folder in forked processes, each of which is killed at another one of its writes.

    python -m tests.runtime.adapters.crashing ROOT MODEL ADAPTERS

Run N uses the folder ROOT/N and is killed by SIGKILL at its N-th chance: before or right after a file is opened for
writing, linked, renamed or removed, or a folder is made or removed. Standard output has a line of JSON for each: how
many changes were done, and the signal that ended it. The last line is of the run that came to its end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

from convert.files import whole_file
from runtime.adapters.check import make_check
from runtime.adapters.disk import StateDir
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.pins import Pins
from runtime.adapters.store import Store
from runtime.adapters.upload_rules import CONFIG_NAME, WEIGHTS_NAME
from runtime.adapters.uploads import ReceivedFile, Uploads
from tests.runtime.double import ScriptedEngine

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class CopyConverter:
    """Gives the GGUF of the adapter that the weights' file names."""

    def __init__(self, adapters: Path) -> None:
        self._adapters = adapters

    async def convert(self, folder: Path, output: Path) -> None:
        """Write ``output``, whole or not at all."""
        with whole_file(output) as file:
            file.write((self._adapters / (folder / WEIGHTS_NAME).read_text()).read_bytes())


class Place:
    """A state folder with all that works on it."""

    def __init__(self, root: Path, model: Path, adapters: Path) -> None:
        self.adapters = adapters
        self.state = StateDir(root)
        self.known = KnownFiles(root / "known.json", stamp_of(model))
        self.pins = Pins(3, root / "pins.json")
        self.store = Store(ScriptedEngine(), 10, lambda checked: self.state.drop_blob(checked.digest), self.pins)
        intake = Intake(self.state, self.known, make_check(model), CopyConverter(adapters), 0)
        self.uploads = Uploads(self.state, self.store, intake)
        self.known.forget_missing()
        self.state.drop_other_blobs(self.uploads.digests() | self.known.digests(besides=self.state.blobs))

    async def change(self, number: int) -> None:
        """Do one change; those before it are done."""
        await CHANGES[number](self)
        while self.store._lives._tasks:
            await asyncio.gather(*self.store._lives._tasks)
        self.known.save()

    def seen(self) -> dict[str, Any]:
        """What clients can see of it: the adapters, their contents, and the pins."""
        views = self.store.snapshot()
        return {view.name: (view.state.value, view.digest, view.is_pinned) for view in views}

    def id_of(self, name: str) -> str:
        """The id of an adapter."""
        view = self.store.find(name)
        assert view is not None
        return view.id

    async def send(self, name: str, file_name: str, content: str) -> None:
        """Send a finetune one of its files."""
        path = self.state.incoming / "sent"
        path.write_text(content)
        await self.uploads.add_file(self.id_of(name), file_name, ReceivedFile(path, content))

    async def put(self, name: str, adapter: str) -> None:
        """Add or replace an adapter with a GGUF."""
        path = self.state.incoming / "put"
        shutil.copyfile(self.adapters / f"{adapter}.gguf", path)
        await self.uploads.put(name, {"put": path})


CHANGES: tuple[Callable[[Place], Awaitable[object]], ...] = (
    lambda place: place.uploads.create("fine", "model"),
    lambda place: place.send("fine", CONFIG_NAME, "{}"),
    lambda place: place.send("fine", WEIGHTS_NAME, "pirate.gguf"),
    lambda place: place.put("mine", "tag"),
    lambda place: place.put("mine", "shout"),
    lambda place: place.store.pin(place.id_of("mine"), is_pinned=True),
    lambda place: place.put("other", "tag"),
    lambda place: place.uploads.remove(place.id_of("fine")),
    lambda place: place.store.pin(place.id_of("mine"), is_pinned=False),
    lambda place: place.put("other", "shout"),
    lambda place: place.uploads.remove(place.id_of("mine")),
)
N_CHANGES = len(CHANGES)


def is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change what is on disk."""
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
    return event in WRITES


def kill_at_write(number: int) -> None:
    """Let this process be killed at its N-th chance: there is one before each write, and one right after it.

    Right after a file was opened for writing it is empty, which shows a file that is not replaced whole.
    """
    chances = itertools.count(1)

    def kill_on_return(frame: FrameType, _event: str, _argument: object) -> None:
        if frame.f_code is not watch.__code__:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not is_write(event, arguments):
            return
        if next(chances) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if next(chances) == number:
            sys.setprofile(kill_on_return)  # is called as soon as the system call has returned

    sys.addaudithook(watch)


def make_changes(folder: Path, model: Path, adapters: Path, kill_at: int, report: int) -> None:
    """Make every change, and die on the way; one byte goes to ``report`` after each change."""

    async def work() -> None:
        place = Place(folder, model, adapters)
        for number in range(N_CHANGES):
            await place.change(number)
            os.write(report, b".")

    kill_at_write(kill_at)
    os.fsync = lambda fd: None  # noqa: ARG005 - a kill loses nothing of what was written; only a power cut does
    asyncio.run(work())


def main() -> int:
    """The exit code."""
    root, model, adapters = map(Path, sys.argv[1:])
    for number in itertools.count(1):
        reading, report = os.pipe()
        child = os.fork()
        if child == 0:
            make_changes(root / str(number), model, adapters, number, report)
            os._exit(0)
        os.close(report)
        _, status = os.waitpid(child, 0)
        n_done = len(os.read(reading, N_CHANGES + 1))
        os.close(reading)
        print(json.dumps({"run": number, "n_done": n_done, "signal": status & 0x7F}), flush=True)
        if status & 0x7F != signal.SIGKILL:
            return 0 if status == 0 else 1
    return 1


if __name__ == "__main__":
    sys.exit(main())

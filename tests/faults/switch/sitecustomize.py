"""The test-only fault switch: Python imports this module at start when its folder is on the path.

``GEMLANE_FAULTS`` names a folder. A file in it, called after a point below, makes the process fail there: its text is
the fault, a space, and an optional condition (a text that the prompt of a request in the batch must hold). A fault
with the word ``once`` in front removes its file first. A point that has struck leaves a file called after it that ends
in ``.struck``. The served code holds nothing of this.

Points: ``decode`` before a batch, ``load`` before the model is loaded, ``prove`` before the lanes are proven, ``step``
before each step, ``read`` at each exact read of a checked file's bytes, ``fill`` before a lane is filled, ``compile``
before a grammar is compiled; and two calls of the system: ``fsync``, where a full disk is noticed at the latest, and
``pread``, under each exact read.
Faults: ``abort``, ``segfault``, ``hang``, ``stop`` (SIGSTOP), ``slow SECONDS``, ``nospace``, ``nomemory``; those of
``pread`` are ``short`` (half of what was asked for, as a system may return) and ``end`` (nothing, as at a file's end).
"""

from __future__ import annotations

import ctypes
import errno
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

POINTS = {
    "decode": ("runtime.engine.engine", "LlamaEngine._decode"),
    "step": ("runtime.engine.engine", "LlamaEngine.step"),
    "load": ("runtime.llama.model", "Model.__init__"),
    "prove": ("runtime.engine.start.startup", "prove_lanes"),
    "read": ("convert.files", "read_at"),
    "fill": ("runtime.engine.adapters.mixed", "MixedAdapters._fill"),
    "compile": ("runtime.llama.grammar", "GrammarCompiler.compile"),
}


def strike(fault: str) -> None:
    """Do what the fault says; those that return are raised or slept by then."""
    word, _, value = fault.partition(" ")
    match word:
        case "abort":
            os.abort()
        case "segfault":
            ctypes.string_at(0)
        case "hang":
            while True:
                time.sleep(60)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow":
            time.sleep(float(value))
        case "nospace":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "nomemory":
            raise MemoryError
        case _:
            raise AssertionError(f"unknown fault {fault!r}")


def check(point: str, arguments: Sequence[Any]) -> None:
    """Strike if the point's file is there and its condition holds."""
    file = Path(os.environ["GEMLANE_FAULTS"], point)
    try:
        fault = file.read_text()
    except OSError:
        return
    if " if " in fault:
        fault, _, needed = fault.partition(" if ")
        batch = arguments[1] if len(arguments) > 1 else ()
        if not any(needed in part.sequence.request.prompt.text for part in batch):
            return
    if fault.startswith("once "):
        file.unlink(missing_ok=True)
        fault = fault.removeprefix("once ")
    file.with_suffix(".struck").touch()
    strike(fault)


def patch(module: ModuleType) -> None:
    """Put the checks in front of the functions of a module that was just imported."""
    for point, (name, path) in POINTS.items():
        if name != module.__name__:
            continue
        owner: Any = module
        *parents, last = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, guarded(point, getattr(owner, last)))


def guarded(point: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, behind its point's check."""

    def call(*arguments: Any, **options: Any) -> Any:
        check(point, arguments)
        return function(*arguments, **options)

    return call


class Finder(importlib.abc.MetaPathFinder):
    """Patches the named modules as they are imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in {module for module, _ in POINTS.values()}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def pread(descriptor: int, n_bytes: int, offset: int, read: Callable[[int, int, int], bytes] = os.pread) -> bytes:
    """The system's positional read, which returns less than there is while its fault is set."""
    file = Path(os.environ["GEMLANE_FAULTS"], "pread")
    if file.exists():
        file.with_suffix(".struck").touch()
        n_bytes = {"short": (n_bytes + 1) // 2, "end": 0}[file.read_text()]
    return read(descriptor, n_bytes, offset)


if os.environ.get("GEMLANE_FAULTS"):
    sys.meta_path.insert(0, Finder())
    os.pread = pread
    os.fsync = guarded("fsync", os.fsync)

"""The process: a line in, lines out, and an end that is always clean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config import EngineSettings
from runtime.generation import FinishReason, GenerationRequest, Prompt, Sampling, Segment
from runtime.messages import (
    Cancel,
    Command,
    Event,
    Finished,
    Generate,
    Load,
    LoadFailed,
    Loading,
    Ready,
    Started,
    Stats,
    Text,
    decode,
    encode,
)

TIMEOUT_S = 60


class Child:
    """The engine as its parent sees it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, *commands: Command) -> None:
        """Write commands."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(map(encode, commands)))
        self.process.stdin.flush()

    def next(self, *, besides: tuple[type, ...] = (Loading, Stats)) -> Event:
        """The next event that is none of ``besides``."""
        assert self.process.stdout is not None
        while True:
            event = decode(self.process.stdout.readline())
            if not isinstance(event, besides):
                assert isinstance(event, Event)
                return event

    def end(self) -> tuple[int, str]:
        """Close its input; the exit code, and what it said on stderr. Nothing may be left on stdout but events."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        for line in out.splitlines():
            decode(line)
        return self.process.returncode, err.decode()


@pytest.fixture
def child() -> Iterator[Child]:
    """A fresh process, gone after the test."""
    child = Child()
    yield child
    child.process.kill()
    child.process.communicate()


def load(model: Path) -> Load:
    """Load a model with one thread."""
    return Load(EngineSettings(model=str(model), threads=1, lanes=2))


def generate(request_id: str, max_tokens: int = 8, seed: int = 1) -> Generate:
    """A long, hot answer."""
    prompt = Prompt((Segment("What is the capital of France?", has_control_tokens=False),))
    return Generate(GenerationRequest(request_id, prompt, max_tokens, Sampling(temperature=2, seed=seed)))


def test_a_session_from_load_to_end_of_file(child: Child, tiny_model: Path) -> None:
    """Ready tells the model and the batching; an answer comes as Started, Text, Finished; closing its input ends it."""
    child.send(load(tiny_model))
    ready = child.next()
    assert isinstance(ready, Ready)
    assert ready.adapter_batching == "mixed"
    assert ready.model.n_layers == 2
    child.send(generate("one"))
    assert isinstance(child.next(), Started)
    text = ""
    while isinstance(event := child.next(), Text):
        text += event.text
    assert isinstance(event, Finished)
    assert event.finish_reason in FinishReason
    code, err = child.end()
    assert code == 0
    assert "Traceback" not in err


def test_loading_is_told(child: Child, tiny_model: Path) -> None:
    """Fractions that grow to 1."""
    child.send(load(tiny_model))
    fractions = []
    while isinstance(event := child.next(besides=()), Loading):
        fractions.append(event.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def broken_models(folder: Path, model: Path) -> dict[str, tuple[Path, str]]:
    """What may stand where a model should be, and a word of the answer."""
    content = model.read_bytes()
    files = {"empty": b"", "text": b"hello\n" * 100, "half": content[: len(content) // 2], "header": content[:500]}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "fifo")
    cases = {name: (folder / name, name) for name in (*files, "fifo")}
    return cases | {"missing": (folder / "missing", "missing"), "folder": (folder, "folder")}


CASES = ("empty", "text", "half", "header", "fifo", "missing", "folder")


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_model_is_one_clear_line(child: Child, tiny_model: Path, tmp_path: Path, case: str) -> None:
    """LoadFailed with the file and the way out; exit code 1; no traceback, no native noise."""
    path, word = broken_models(tmp_path, tiny_model)[case]
    child.send(load(path))
    failed = child.next()
    assert isinstance(failed, LoadFailed)
    assert failed.code == "model_load"
    assert word in failed.message
    assert "gemlane convert model" in failed.message
    assert "\n" not in failed.message
    code, err = child.end()
    assert (code, err) == (1, "")


@pytest.mark.parametrize("end", ["SIGTERM", "end of file"])
def test_it_ends_cleanly_while_it_works(child: Child, tiny_model: Path, end: str) -> None:
    """With answers running."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.send(*(generate(str(n), max_tokens=400, seed=n) for n in range(4)))
    assert isinstance(child.next(), Started)
    if end == "SIGTERM":
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(TIMEOUT_S) == 0
    code, err = child.end()
    assert (code, "Traceback" in err) == (0, False)


def test_a_cancellation_that_leaves_nothing_is_told(child: Child, tiny_model: Path) -> None:
    """The last word about the load is that there is none."""
    child.send(load(tiny_model))
    child.next()
    child.send(generate("one", max_tokens=200), Cancel("one"))
    stats = child.next(besides=(Loading, Started, Text))
    while isinstance(stats, Stats) and stats.n_running + stats.n_waiting:
        stats = child.next(besides=(Loading, Started, Text))
    assert isinstance(stats, Stats)
    assert not stats.n_kv_cells_used


def test_ctrl_c_is_the_parents(child: Child, tiny_model: Path) -> None:
    """SIGINT reaches the whole terminal; the engine goes on until its parent ends it."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.process.send_signal(signal.SIGINT)
    child.send(generate("after"))
    assert isinstance(child.next(), Started)
    assert child.end()[0] == 0


def test_it_ends_when_nobody_reads(child: Child, tiny_model: Path) -> None:
    """A parent that is gone is no error to shout about."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    assert child.process.stdout is not None
    child.process.stdout.close()
    child.send(generate("nobody reads"))
    assert child.process.wait(TIMEOUT_S) == 0


def test_a_line_that_is_no_message_is_told_and_ignored(child: Child, tiny_model: Path) -> None:
    """Garbage of any kind between two commands."""
    assert child.process.stdin is not None
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.process.stdin.write(b'not json\n{}\n{"is":"Nobody"}\n\xff\xfe\n{"is":"Loading","fraction":1}\n')
    child.send(generate("still"))
    started = child.next()
    assert isinstance(started, Started)
    code, err = child.end()
    assert code == 0
    assert err.count("ignoring") == 5


def test_the_first_command_is_load(child: Child) -> None:
    """Anything else is a parent's mistake."""
    child.send(generate("too early"))
    code, err = child.end()
    assert code == 2
    assert "must be Load" in err


def test_no_command_at_all_is_an_end(child: Child) -> None:
    """A parent that changed its mind."""
    assert child.end() == (0, "")


def test_events_stand_alone_on_standard_output(tiny_model: Path) -> None:
    """What native code or a stray print writes to descriptor 1 reaches standard error."""
    script = (
        "import os, runpy, sys\n"
        "import threading\n"
        "threading.Timer(0.5, lambda: (os.write(1, b'native noise\\n'), print('python noise', flush=True))).start()\n"
        "sys.argv = ['engine']\n"
        "runpy.run_module('runtime.engine', run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(encode(load(tiny_model)))
    process.stdin.flush()
    seen = b""
    while b"python noise" not in seen:
        seen += process.stderr.readline()
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert b"native noise" in seen
    for line in out.splitlines():
        decode(line)

"""The process: a line in, lines out, and an end that is always clean."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config import EngineSettings
from runtime.engine.process import raise_file_limit
from runtime.generation import FinishReason, GenerationRequest, Prompt, Sampling, Segment
from runtime.messages import (
    LANES_PROVING,
    LANES_WAITING,
    Accepted,
    AdapterAdded,
    AddAdapter,
    BatchingChanged,
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
    Working,
)
from runtime.pipe import decode, encode

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
        """Write commands to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(map(encode, commands)))
        self.process.stdin.flush()

    def next(self, *, besides: tuple[type, ...] = (Loading, Stats, Accepted, Working)) -> Event:
        """Return the next event whose type is not in ``besides``."""
        assert self.process.stdout is not None
        while True:
            event = decode(self.process.stdout.readline())
            if not isinstance(event, besides):
                assert isinstance(event, Event)
                return event

    def end(self) -> tuple[int, str]:
        """Close the input; return the exit code and standard error. Standard output must hold nothing but events."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        for line in out.splitlines():
            decode(line)
        return self.process.returncode, err.decode()


@pytest.fixture
def child() -> Iterator[Child]:
    """A fresh engine process, ended after the test."""
    child = Child()
    yield child
    child.process.kill()
    child.process.communicate()


def load(model: Path) -> Load:
    """Return the command that loads a model with one thread."""
    return Load(EngineSettings(model=str(model), threads=1, lanes=2))


def generate(request_id: str, max_tokens: int = 8, seed: int = 1) -> Generate:
    """Return the command for a long answer at a high temperature."""
    prompt = Prompt((Segment("What is the capital of France?", has_control_tokens=False),))
    return Generate(GenerationRequest(request_id, prompt, max_tokens, Sampling(temperature=2, seed=seed)))


def test_a_session_from_load_to_end_of_file(child: Child, tiny_model: Path) -> None:
    """Ready, Accepted, Started, Text and Finished come in order, and the end of the input ends the process."""
    child.send(load(tiny_model))
    ready = child.next()
    assert isinstance(ready, Ready)
    assert (ready.adapter_batching, ready.batching_reason) == ("grouped", LANES_WAITING)
    assert ready.model.n_layers == 2
    child.send(generate("one"))
    assert isinstance(child.next(besides=(Working,)), Accepted)
    assert isinstance(child.next(), Started)
    text = ""
    while isinstance(event := child.next(), Text):
        text += event.text
    assert isinstance(event, Finished)
    assert event.finish_reason in FinishReason
    code, err = child.end()
    assert code == 0
    assert "Traceback" not in err


def test_lanes_are_proven_once_an_adapter_comes(child: Child, tiny_model: Path, tiny_adapters: Path) -> None:
    """The engine says when the proof begins and when it ends, with nothing else to do meanwhile."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.send(AddAdapter("a" * 64, str(tiny_adapters / "shout.gguf")))
    assert child.next() == BatchingChanged("grouped", LANES_PROVING)
    assert child.next() == AdapterAdded("a" * 64)
    changed = child.next()
    assert isinstance(changed, BatchingChanged)
    assert changed.adapter_batching == "mixed"
    code, err = child.end()
    assert code == 0
    assert "Traceback" not in err


def test_an_engine_that_ends_while_lanes_are_proven_leaves_no_process(
    child: Child, tiny_model: Path, tiny_adapters: Path
) -> None:
    """The check's process ends with the engine: its output is closed, so that nothing waits for it."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.send(AddAdapter("a" * 64, str(tiny_adapters / "shout.gguf")))
    assert child.next() == BatchingChanged("grouped", LANES_PROVING)
    child.process.kill()
    # communicate() returns once every process that holds standard error has ended.
    child.process.communicate(timeout=TIMEOUT_S)


def test_loading_sends_its_progress(child: Child, tiny_model: Path) -> None:
    """Loading events carry fractions that grow to 1."""
    child.send(load(tiny_model))
    fractions = []
    while isinstance(event := child.next(besides=()), Loading):
        fractions.append(event.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def broken_models(folder: Path, model: Path) -> dict[str, tuple[Path, str]]:
    """Return files that are not a base model, and a word of the error for each."""
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
    """A file that is not a model gives LoadFailed, exit code 1, and neither a traceback nor native output."""
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
    """The process ends cleanly while answers are running."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.send(*(generate(str(n), max_tokens=400, seed=n) for n in range(4)))
    assert isinstance(child.next(), Started)
    if end == "SIGTERM":
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(TIMEOUT_S) == 0
    code, err = child.end()
    assert (code, "Traceback" in err) == (0, False)


def test_a_cancellation_that_leaves_no_request_is_reported(child: Child, tiny_model: Path) -> None:
    """When the last request is cancelled, the next Stats event counts no request."""
    child.send(load(tiny_model))
    child.next()
    child.send(generate("one", max_tokens=200), Cancel("one"))
    stats = child.next(besides=(Loading, Accepted, Started, Text, Working))
    while isinstance(stats, Stats) and stats.n_running + stats.n_waiting:
        stats = child.next(besides=(Loading, Accepted, Started, Text, Working))
    assert isinstance(stats, Stats)
    assert not stats.n_kv_cells_used


def test_ctrl_c_is_the_parents(child: Child, tiny_model: Path) -> None:
    """The engine ignores SIGINT and goes on until its parent ends it."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    child.process.send_signal(signal.SIGINT)
    child.send(generate("after"))
    assert isinstance(child.next(), Started)
    assert child.end()[0] == 0


def test_it_ends_when_its_pipe_has_no_reader(child: Child, tiny_model: Path) -> None:
    """The process ends without an error message when its parent is gone."""
    child.send(load(tiny_model))
    assert isinstance(child.next(), Ready)
    assert child.process.stdout is not None
    child.process.stdout.close()
    child.send(generate("nobody reads"))
    assert child.process.wait(TIMEOUT_S) == 0


def test_a_line_that_is_no_message_is_logged_and_ignored(child: Child, tiny_model: Path) -> None:
    """Invalid lines between two commands are logged and ignored."""
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
    """A first command other than Load ends the process with an error."""
    child.send(generate("too early"))
    code, err = child.end()
    assert code == 2
    assert "must be Load" in err


def test_no_command_at_all_is_an_end(child: Child) -> None:
    """The end of the input before any command ends the process with exit code 0."""
    assert child.end() == (0, "")


def test_events_stand_alone_on_standard_output(tiny_model: Path) -> None:
    """What native code or a print writes to descriptor 1 goes to standard error."""
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


def test_the_limit_of_open_files_is_raised() -> None:
    """A soft limit below the hard one is raised, since every known adapter has an open file; a higher one stays."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raise_file_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (soft, hard) == (min(hard, 10_240) if hard != resource.RLIM_INFINITY else 10_240, before[1])
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

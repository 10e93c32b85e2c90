"""The self-check in the background, once for each combination of build, devices, model and settings.

A passed check is remembered as a file in the state folder; a failed check is repeated at the next start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import runtime.llama.lanes
from convert.errors import OutputProblem
from convert.files import whole_file
from convert.module import module_command, module_environment
from runtime.engine.start.prove import ProofTask
from runtime.engine.start.selfcheck import Verdict
from runtime.llama.devices import Placement, backend_names
from runtime.llama.library import COMMIT, VERSION, build_of

_LOG = logging.getLogger("gemlane.engine")
_FOLDER = "lanes-proven"
_MAX_KEPT = 64
# Shaders of a first run are compiled by some drivers in minutes each.
_TIMEOUT_S = 3600.0
_WANTED_INTERVAL_S = 0.2
# What changes neither results nor kernels.
_IRRELEVANT = frozenset({"model", "n_ctx", "kv_cells", "parallel", "prefix_dir", "step_budget_ms", "adapter_batching"})
_COMMAND = module_command("runtime.engine.start.prove")


class ProofRecords:
    """What has been proven before, one small file for each proof."""

    def __init__(self, state_dir: Path | None) -> None:
        """Use a folder of ``state_dir``, made when something is to be remembered; None: nothing is remembered."""
        self._folder = state_dir / _FOLDER if state_dir else None

    def find(self, key: str) -> Verdict | None:
        """What was proven under a key."""
        if self._folder is None:
            return None
        try:
            return Verdict(float(json.loads((self._folder / f"{key}.json").read_bytes())["worst"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, key: str, verdict: Verdict) -> None:
        """Remember a proof; a folder that cannot be written costs another check at the next start."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._folder / f"{key}.json") as file:
                file.write(json.dumps({"worst": verdict.worst}).encode())
            records = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for old in records[:-_MAX_KEPT]:
                old.unlink(missing_ok=True)
        except (OSError, OutputProblem) as error:
            _LOG.warning("the self-check cannot be remembered in %s: %s", self._folder, error)


def key_of(task: ProofTask, model_identity: str, placement: Placement) -> str:
    """What has to be equal for a proof to hold: build, devices, weights, settings, and our own code."""
    settings = dataclasses.asdict(task.settings)
    parts: list[object] = [
        {name: value for name, value in settings.items() if name not in _IRRELEVANT},
        task.n_batch,
        placement.n_layers,
        placement.tensor_split,
        [(device.name, device.description, device.total_bytes) for device in placement.devices],
        model_identity,
        (VERSION, COMMIT, build_of(), backend_names()),
        _code_digest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    """A digest of the modules that make lanes and check them."""
    digest = hashlib.sha256()
    for folder in (Path(runtime.llama.lanes.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a check: what was proven, or why not."""

    verdict: Verdict | None
    reason: str


class Proof:
    """One run of the self-check in a process of its own."""

    def __init__(
        self,
        task: ProofTask,
        on_passed: Callable[[Verdict], None],
        on_end: Callable[[], None],
        command: Sequence[str] = _COMMAND,
    ) -> None:
        """Run nothing yet.

        Args:
            task: what to prove.
            on_passed: takes what was proven, in another thread.
            on_end: called from another thread when the check has ended.
            command: the process.
        """
        self._task = task
        self._on_passed, self._on_end = on_passed, on_end
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self.outcome: Outcome | None = None
        """The end of the check, once it has come."""

    def start(self) -> bool:
        """Begin, unless it has begun; whether it begins now."""
        if self._process is not None:
            return False
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # ggml would start a debugger to print a trace.
                env=module_environment() | {"GGML_NO_BACKTRACE": "1"},
                process_group=0,
            )
        except OSError as error:
            self._end(Outcome(None, f"the self-check cannot be started: {error.strerror}"))
            return False
        threading.Thread(target=self._wait, args=(self._process,), name="self-check", daemon=True).start()
        return True

    def wait(self, is_wanted: Callable[[], bool]) -> Outcome:
        """Begin if it has not, and wait for the end; it is stopped when it is wanted no more."""
        self.start()
        while not self._ended.wait(_WANTED_INTERVAL_S):
            if not is_wanted():
                self.stop()
        assert self.outcome is not None
        return self.outcome

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        outcome = _end_of(process, self._task)
        if outcome.verdict is not None:
            self._on_passed(outcome.verdict)
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._ended.set()
        self._on_end()


def _end_of(process: subprocess.Popen[bytes], task: ProofTask) -> Outcome:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(task.encode())
            process.stdin.flush()
        timer = threading.Timer(_TIMEOUT_S, process.kill)
        timer.daemon = True
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
    status = process.wait()
    try:
        result = json.loads(line)
        if "worst" in result:
            verdict = Verdict(float(result["worst"]))
            return Outcome(verdict, str(verdict))
        return Outcome(None, str(result["error"]))
    except (ValueError, KeyError, TypeError):
        return Outcome(None, f"the self-check's process ended {_exit_words(status)}")


def _exit_words(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
    return f"with exit code {status}"

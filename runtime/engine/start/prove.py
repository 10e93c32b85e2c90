"""The whole self-check, on a model of few layers with the shapes, types, devices and settings of the one to serve.

``python -m runtime.engine.start.prove`` runs it as a process of its own, since llama.cpp ends the process that asks a
backend for what it cannot do: one JSON object on standard input, one on standard output. It also ends when its standard
input does, so that it never outlives the engine.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from convert.cores import n_physical_cores
from convert.errors import ConvertError
from convert.gguf.header import GgufHeader, read_header
from runtime.config import EngineSettings
from runtime.engine.start.few_layers import choose_layers, write_few_layers
from runtime.engine.start.model_file import check_model_file
from runtime.engine.start.selfcheck import SelfCheckError, Verdict, prove_lanes
from runtime.engine.start.trials import N_PROBES, N_SEQUENCES, WHOLE_MODEL, Trial, trials
from runtime.errors import GemlaneError
from runtime.llama.context import ContextShape
from runtime.llama.devices import Device, Placement, add_rpc_servers, choose
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.template import lora_shapes
from runtime.llama.library import Library
from runtime.llama.model import Model

_LOG = logging.getLogger("gemlane.engine")
_MIN_LAYERS = 2
# Beside prompts of the widest batch, a few tokens of answers.
_SPARE_CELLS = 256
# Requests are served meanwhile.
_NICENESS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class ProofTask:
    """What is to be proven."""

    settings: EngineSettings
    n_batch: int
    n_device_layers: int
    """Layers of the whole model that devices hold, the head counted as one layer more."""
    n_layers: int
    """Layers of the whole model."""
    folder: str = ""
    """Where the model of few layers may be put for the moment; empty: the system's folder for temporary files."""

    def encode(self) -> bytes:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def decode_task(line: bytes) -> ProofTask:
    """The task that a line of JSON holds."""
    fields: dict[str, Any] = json.loads(line)
    return ProofTask(**{**fields, "settings": EngineSettings(**fields["settings"])})


def prove(library: Library, task: ProofTask) -> Verdict:
    """Run every trial on few layers, and a short one on the whole model where that costs no memory twice.

    The processor maps the model's file, which costs nothing a second time; where devices hold layers, the engine itself
    runs the short one.

    Raises:
        SelfCheckError: lanes are wrong, or the disk has no room for the model of few layers.
        GemlaneError: a batch failed, or the model or its lanes cannot be loaded.
    """
    path = Path(task.settings.model)
    header, _ = check_model_file(path)
    devices = choose(task.settings.device) if task.n_device_layers else []
    is_whole = task.n_device_layers > task.n_layers
    layers = choose_layers(header, max(_MIN_LAYERS, len(devices) + (not is_whole)))
    with tempfile.TemporaryDirectory(prefix="gemlane-", dir=task.folder or None) as folder:
        few = Path(folder) / "few-layers.gguf"
        try:
            write_few_layers(few, header, layers)
        except (ConvertError, OSError) as error:
            raise SelfCheckError(f"a model of few layers cannot be written: {error}") from error
        few_header = read_header(few)
        model = Model(library, few, placement=_place(task, devices, len(layers)), on_progress=lambda _: True)
    n_lanes = max(task.settings.lanes, N_PROBES)
    verdict = _run(task, model, few_header, trials(task.n_batch), n_lanes=n_lanes)
    if devices:
        return verdict
    whole = Model(library, path, placement=Placement(is_as_in_file=True), on_progress=lambda _: True)
    short = dataclasses.replace(task, n_batch=N_SEQUENCES)
    return max(verdict, _run(short, whole, header, (WHOLE_MODEL,), n_lanes=N_PROBES), key=lambda one: one.worst)


def _run(task: ProofTask, model: Model, header: GgufHeader, of: Sequence[Trial], *, n_lanes: int) -> Verdict:
    """Run trials on a model, and free it."""
    settings = task.settings
    try:
        bank_shape = BankShape(n_lanes, settings.max_lora_rank, settings.lane_type, task.n_batch)
        shape = ContextShape(
            n_kv_cells=task.n_batch + _SPARE_CELLS,
            n_batch=task.n_batch,
            n_sequences=N_SEQUENCES,
            n_threads=settings.threads or n_physical_cores(),
            kv_type=settings.kv_type,
            flash_attention=settings.flash_attn,
            is_kv_on_device=settings.kv_offload == "on",
        )
        laned = LanedContext(model, shape, lora_shapes(header), bank_shape)
        try:
            return prove_lanes(model, laned, bank_shape, header, of)
        finally:
            laned.free()
    finally:
        model.free()


def _place(task: ProofTask, devices: list[Device], n_layers: int) -> Placement:
    """The same kind of placement: nothing on devices, everything, or all but the first layer."""
    if not devices:
        return Placement()
    is_whole = task.n_device_layers > task.n_layers
    shares = tuple(1.0 for _ in devices) if len(devices) > 1 else ()
    return Placement(n_layers + 1 if is_whole else n_layers, tuple(devices), shares)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main(results: BinaryIO) -> int:
    """Prove the task on standard input; the exit code.

    Args:
        results: where the result goes; standard output itself is native code's.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    task = decode_task(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.nice(_NICENESS)
    try:
        library = Library()
        add_rpc_servers(task.settings.rpc)
        result: dict[str, object] = {"worst": prove(library, task).worst}
    except (SelfCheckError, GemlaneError) as error:
        result = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - the edge of the process
        _LOG.exception("the self-check failed by itself")
        result = {"error": f"the self-check failed by itself: {error!r}"}
    results.write(json.dumps(result).encode() + b"\n")
    results.flush()
    return 0


if __name__ == "__main__":
    # Native code may write to descriptor 1; results have one of their own.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    status = main(own)
    own.close()
    os._exit(status)

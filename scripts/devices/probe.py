"""The whole self-check on the tiny Gemma, for every type of lanes and cache and every placement, on devices at hand.

    python -m scripts.devices.probe                         all devices; the processor alone where there is none
    python -m scripts.devices.probe --device CUDA0 --rpc HOST:PORT

One line for each combination: how far lanes are from llama.cpp's own adapters, or what is wrong. Exit code 1 if
anything is. The widest batch is that of the server, so kernels for wide batches are covered.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

from runtime.config import EngineSettings
from runtime.engine.start.prove import ProofTask, prove
from runtime.engine.start.selfcheck import SelfCheckError
from runtime.errors import GemlaneError
from runtime.llama.devices import add_rpc_servers, backend_names, choose
from runtime.llama.library import Library
from tests.tiny_gemma.files import convert_base

FOLDER = Path(".gemlane/probe")
N_BATCH = 512
N_LAYERS = 2


def main() -> int:
    """Probe; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="", help="as in gemlane serve")
    parser.add_argument("--rpc", default="", help="as in gemlane serve")
    parser.add_argument("--types", nargs="*", default=["f32", "q8_0", "q4_k_m"], help="of the model's weights")
    parser.add_argument("--lane-types", nargs="*", default=["f32", "f16", "q8_0"])
    parser.add_argument("--kv-types", nargs="*", default=["f16", "q8_0"])
    asked = parser.parse_args()
    library = Library()
    add_rpc_servers(asked.rpc)
    devices = choose(asked.device)
    print("backends:", ", ".join(backend_names()), "devices:", ", ".join(map(str, devices)) or "none", flush=True)
    n_wrong = 0
    layers = range(N_LAYERS + 2) if devices else (0,)
    for model_type, lane_type, kv_type, n_layers in itertools.product(
        asked.types, asked.lane_types, asked.kv_types, layers
    ):
        settings = EngineSettings(
            model=str(_model(model_type)),
            threads=1,
            device=asked.device,
            rpc=asked.rpc,
            lane_type=lane_type,
            kv_type=kv_type,
        )
        started = time.monotonic()
        try:
            words = f"ok   {100 * prove(library, ProofTask(settings, N_BATCH, n_layers, N_LAYERS)).worst:6.3f} %"
        except (SelfCheckError, GemlaneError) as error:
            words, n_wrong = f"BAD  {error}", n_wrong + 1
        row = f"{model_type:7} lanes {lane_type:5} cache {kv_type:5} layers on devices {n_layers}"
        print(f"{row}: {words} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{n_wrong} wrong")
    return 1 if n_wrong else 0


def _model(type_name: str) -> Path:
    """The tiny Gemma in this type, converted if it is not there."""
    path = FOLDER / f"tiny-{type_name}.gguf"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        convert_base(path, type_name)
    return path


if __name__ == "__main__":
    sys.exit(main())

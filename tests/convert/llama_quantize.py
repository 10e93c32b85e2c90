"""llama.cpp's own quantiser, in a process of its own: what the converter's mixes of types are compared with.

Source of the calls: llama.cpp include/llama.h, as of llama-cpp-python 0.3.36.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

from llama_cpp import llama_cpp as native


def quantize(source: Path, output: Path, file_type: int) -> None:
    """Quantise a GGUF of floats; `file_type` is a number of llama.h's enum llama_ftype."""
    command = (sys.executable, "-m", "tests.convert.llama_quantize", str(source), str(output), str(file_type))
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)


def main(source: str, output: str, file_type: str) -> int:
    """Quantise; 0 if llama.cpp says so."""
    native.llama_backend_init()
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = int(file_type), 1
    return int(native.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

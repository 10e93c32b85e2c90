"""An importance matrix for the tiny Gemma, made of waves: the same numbers for our converter and for llama.cpp."""

from pathlib import Path

import numpy as np

from convert.gguf.header import read_header
from tests.convert.checkpoints import Array
from tests.convert.gguf_bytes import Gguf, Tensor, string

COUNT = 7.0


def importance(base_gguf: Path) -> dict[str, Array]:
    """Return weight name -> (n_columns,) float32 for every matrix of the model but one."""
    values = {}
    for number, (name, tensor) in enumerate(read_header(base_gguf).tensors.items()):
        if len(tensor.shape) == 2 and name != "blk.1.attn_k.weight":
            columns = np.arange(tensor.shape[0])
            sums = (7.0 + 6.0 * np.sin(columns * (number + 1))).astype(np.float32)
            values[name] = (sums / np.float32(COUNT)).astype(np.float32)
    return values


def write_imatrix(path: Path, base_gguf: Path) -> Path:
    """Write it as llama.cpp's imatrix tool does."""
    tensors = []
    for name, mean in importance(base_gguf).items():
        sums = (mean * np.float32(COUNT)).astype(np.float32)
        tensors.append(Tensor(f"{name}.in_sum2", (mean.size, 1), data=sums.tobytes()))
        tensors.append(Tensor(f"{name}.counts", (1, 1), data=np.array([COUNT], np.float32).tobytes()))
    path.write_bytes(Gguf([string("general.type", "imatrix")], tensors).bytes())
    return path

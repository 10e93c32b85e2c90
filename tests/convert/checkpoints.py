"""Builds variants of the tiny Gemma and of its adapters, as other tools would have saved them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.tensors.safetensors import SafetensorsFile
from tests.tiny_gemma.files import ADAPTERS, BASE

Array = npt.NDArray[Any]
_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8"}


def read_tensors(path: Path) -> dict[str, Array]:
    """Read all tensors of a safetensors file as float32."""
    with SafetensorsFile(path) as file:
        return {name: file.read(name).copy() for name in file.tensors}


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a safetensors file; uint16 arrays count as BF16."""
    header, offset = {}, 0
    for name, values in tensors.items():
        end = offset + values.nbytes
        header[name] = {
            "dtype": _DTYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(v.tobytes() for v in tensors.values()))


def bf16(values: Array) -> Array:
    """Encode float32 values, which must be exact in BF16, as uint16."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def peft(directory: Path, style: str, tensors: Mapping[str, Array] | None = None, **config: object) -> Path:
    """Save a variant of a tiny adapter as PEFT does; `config` replaces keys of its configuration."""
    source = ADAPTERS[style]
    directory.mkdir(parents=True, exist_ok=True)
    original = json.loads((source / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(original | config))
    if tensors is None:
        tensors = adapter_tensors(style)
    write_tensors(directory / "adapter_model.safetensors", tensors)
    return directory


def adapter_tensors(style: str) -> dict[str, Array]:
    """The tensors of a tiny adapter."""
    return read_tensors(ADAPTERS[style] / "adapter_model.safetensors")


def checkpoint(directory: Path, tensors: Mapping[str, Array] | None = None, **config: object) -> Path:
    """Save a variant of the tiny Gemma; a config key given as None is left out."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(BASE / name, directory / name)
    changed = json.loads((BASE / "config.json").read_text()) | config
    kept = {key: value for key, value in changed.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    if tensors is None:
        shutil.copyfile(BASE / "model.safetensors", directory / "model.safetensors")
    else:
        write_tensors(directory / "model.safetensors", tensors)
    return directory


def base_tensors() -> dict[str, Array]:
    """The tensors of the tiny Gemma as float32."""
    return read_tensors(BASE / "model.safetensors")

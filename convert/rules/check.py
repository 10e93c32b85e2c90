"""Decides whether a GGUF file may be handed to llama.cpp, before llama.cpp sees it.

The server, the engine and the converter check files here: by the rules of `rules.adapter` and `rules.model`, and for
adapters every value too. Each error names the file, the key or tensor, and the rule.
"""

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from convert.errors import MalformedFile, RejectedAdapter
from convert.files import open_regular, read_at
from convert.gguf.finite import is_finite, is_zero
from convert.gguf.header import GgufHeader, TensorInfo, read_header
from convert.rules.adapter import AdapterSummary, check_adapter
from convert.rules.model import ModelSummary, check_model

__all__ = ["AdapterSummary", "ModelSummary", "validate_adapter", "validate_model"]

CHANGES_NOTHING: Final = "it changes nothing: of each pair A or B is all zeros; was it saved before it was trained?"
_CHUNK_BYTES: Final = 16 << 20


def validate_adapter(path: Path, base: GgufHeader) -> AdapterSummary:
    """Check the adapter at `path` against every rule, its values included.

    Args:
        path: The adapter's GGUF file.
        base: The header of the base model it is to be applied to.

    Raises:
        ConvertError: As `header.read_header`.
        RejectedAdapter: A rule is broken; the message names the key or tensor.
    """
    header = read_header(path)
    summary = check_adapter(header, base)
    with open_regular(path) as file:
        zeros = {name for name, one in header.tensors.items() if _is_zero(header, one, file)}
    weights = {name.rpartition(".")[0] for name in header.tensors}
    if all(f"{weight}.lora_a" in zeros or f"{weight}.lora_b" in zeros for weight in weights):
        return replace(summary, warnings=(*summary.warnings, CHANGES_NOTHING))
    return summary


def validate_model(path: Path) -> ModelSummary:
    """Check the base model at `path`: keys, vocabulary and tensor table. Weights are not read.

    Raises:
        ConvertError: As `header.read_header`.
        RejectedModel: A rule is broken; the message names the key or tensor.
    """
    return check_model(read_header(path))


def _is_zero(header: GgufHeader, tensor: TensorInfo, file: BinaryIO) -> bool:
    """Read every value of a tensor; say whether all are zero.

    Raises:
        RejectedAdapter: One is NaN or infinite, or the file became shorter.
    """
    block_bytes = tensor.type.block.size_bytes
    chunk_bytes = _CHUNK_BYTES // block_bytes * block_bytes
    only_zeros = True
    for start in range(0, tensor.size_bytes, chunk_bytes):
        n_bytes = min(chunk_bytes, tensor.size_bytes - start)
        try:
            values = np.frombuffer(read_at(file, tensor.offset + start, n_bytes), np.uint8)
        except MalformedFile as error:
            raise RejectedAdapter(f"{header.path}: the file became shorter while it was read") from error
        if not is_finite(tensor.type, values):
            raise RejectedAdapter(f"{header.path}: {tensor.name!r} holds NaN or infinity")
        only_zeros = only_zeros and is_zero(tensor.type, values)
    return only_zeros

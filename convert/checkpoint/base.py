"""The base that an adapter is for, given as a GGUF or a checkpoint: its shapes, as a GGUF header."""

from pathlib import Path
from types import MappingProxyType

from convert.checkpoint.config import read_hyperparameters
from convert.errors import RejectedModel
from convert.folders import folder_name
from convert.gguf.header import DEFAULT_ALIGNMENT, VERSIONS, GgufHeader, TensorInfo, ValueType, read_header
from convert.gguf.types import GgmlType
from convert.rules.gemma import ARCHITECTURE


def read_base(path: Path) -> GgufHeader:
    """Read the header of a GGUF base, or make the header that a checkpoint's conversion will have.

    Raises:
        ConvertError: The file or directory cannot be read.
        RejectedModel: It is a GGUF, but not a Gemma model.
    """
    if path.is_dir():
        return promised_header(path)
    header = read_header(path)
    if header.string("general.type") == "adapter":
        raise RejectedModel(f"{path}: an adapter, not a base model")
    if header.string("general.architecture") != ARCHITECTURE:
        raise RejectedModel(f"{path}: general.architecture is {header.string('general.architecture')!r}, not gemma")
    return header


def promised_header(directory: Path) -> GgufHeader:
    """Make the header that a checkpoint's conversion will have: its tensors' shapes, all F32 at offset 0.

    Raises:
        ConvertError: The configuration cannot be used.
    """
    shapes = read_hyperparameters(directory).tensor_shapes()
    texts = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": folder_name(directory),
    }
    tensors = {name: TensorInfo(name, GgmlType.F32, shape[::-1], 0, 0) for name, shape in shapes.items()}
    return GgufHeader(
        path=directory,
        version=VERSIONS[-1],
        alignment=DEFAULT_ALIGNMENT,
        size_bytes=0,
        data_offset=0,
        metadata=MappingProxyType(texts),
        value_types=MappingProxyType(dict.fromkeys(texts, ValueType.STRING)),
        tensors=MappingProxyType(tensors),
    )

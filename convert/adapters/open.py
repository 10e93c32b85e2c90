"""Finds the dialect that an adapter is written in, and opens it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.adapters import mlx, peft
from convert.adapters.adapter import LoraAdapter
from convert.adapters.gguf import read_gguf_adapter
from convert.adapters.peft_config import CONFIG_NAME, MAX_CONFIG_BYTES
from convert.files import read_json_object
from convert.folders import adapter_folder, unknown_folder
from convert.gguf.header import GgufHeader
from convert.gguf.quantisers import Ggml
from convert.rules.check import validate_adapter
from convert.tensors.gguf import OpenGguf
from convert.tensors.safetensors import SafetensorsFile


@contextmanager
def open_adapter(path: Path, base: GgufHeader, ggml: Ggml, *, is_legacy_alpha: bool = False) -> Iterator[LoraAdapter]:
    """Open an adapter of any dialect; its weights can be read while the block runs.

    Args:
        path: A PEFT or MLX folder, one of the numbered files in an MLX folder, or a GGUF adapter.
        base: The model it is for; a GGUF adapter is checked against it at once.
        ggml: Decodes a GGUF's weights.
        is_legacy_alpha: See `mlx.read_mlx`.

    Raises:
        ConvertError: By class.
    """
    if not path.is_dir() and path.suffix != ".safetensors":
        with OpenGguf(path) as gguf:
            yield read_gguf_adapter(gguf, validate_adapter(path, base), ggml)
        return
    with open_trained_adapter(path, is_legacy_alpha=is_legacy_alpha) as adapter:
        yield adapter


@contextmanager
def open_trained_adapter(path: Path, *, is_legacy_alpha: bool = False) -> Iterator[LoraAdapter]:
    """Open an adapter as training left it: a PEFT or MLX folder, or one of the numbered files in an MLX folder.

    Raises:
        ConvertError: By class.
    """
    directory = adapter_folder(path if path.is_dir() else path.parent)
    config_path = directory / CONFIG_NAME
    is_mlx = mlx.is_mlx(read_json_object(config_path, MAX_CONFIG_BYTES))
    with SafetensorsFile(path if path.is_file() else _weights(directory, is_mlx=is_mlx)) as file:
        if is_mlx:
            yield mlx.read_mlx(path, file, is_legacy_alpha=is_legacy_alpha)
        else:
            yield peft.read_peft(path, file)


def _weights(directory: Path, *, is_mlx: bool) -> Path:
    path = directory / (mlx.WEIGHTS_NAME if is_mlx else peft.WEIGHTS_NAME)
    if not path.exists():
        raise unknown_folder(directory, f"no {path.name}: the adapter's weights are missing")
    return path

"""Is a GGUF file an adapter of this base model? Asked before llama.cpp, or the engine, hears of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convert.errors import ConvertError
from convert.gguf.header import read_header
from convert.rules.check import validate_adapter
from runtime.errors import InvalidAdapter, ModelLoadError


def make_check(model: Path) -> Callable[[Path], None]:
    """A check of adapters against the base model at ``model``, their every value included.

    The check raises InvalidAdapter, naming the file, the key or tensor, and the rule.

    Raises:
        ModelLoadError: the base model's header cannot be read.
    """
    try:
        base = read_header(model)
    except ConvertError as error:
        raise ModelLoadError(str(error)) from error

    def check(path: Path) -> None:
        try:
            validate_adapter(path, base)
        except ConvertError as error:
            raise InvalidAdapter(str(error)) from error

    return check

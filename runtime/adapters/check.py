"""Checks that a GGUF file is an adapter of this base model, before the engine or llama.cpp sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convert.errors import ConvertError
from convert.gguf.header import read_header
from convert.rules.check import AdapterSummary, validate_adapter
from runtime.errors import InvalidAdapter, ModelLoadError, without_folders


def make_check(model: Path) -> Callable[[Path], AdapterSummary]:
    """Make a check of adapters, all their values included, against the base model at ``model``.

    The check returns the adapter's summary, with its warnings. It raises InvalidAdapter, naming the file, the key or
    tensor, and the rule; the message holds no folder of the server.

    Raises:
        ModelLoadError: the base model's header cannot be read.
    """
    try:
        base = read_header(model)
    except ConvertError as error:
        raise ModelLoadError(str(error)) from error

    def check(path: Path) -> AdapterSummary:
        try:
            return validate_adapter(path, base)
        except ConvertError as error:
            raise InvalidAdapter(without_folders(str(error), path, model)) from error

    return check

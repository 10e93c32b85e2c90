"""The base model's file is read in Python before llama.cpp sees it: its header, by the converter's rules."""

from __future__ import annotations

from pathlib import Path

from convert.errors import ConvertError
from convert.folders import model_folder
from convert.gguf.header import GgufHeader, read_header
from convert.rules.model import ModelSummary, check_model
from runtime.errors import ModelLoadError

_REMEDY = "make one with: gemlane convert model DIR -o FILE"


def check_model_file(path: Path) -> tuple[GgufHeader, ModelSummary]:
    """The header of a base model that llama.cpp may be given, and what the rules say of it.

    Raises:
        ModelLoadError: there is no such file, it is not a regular one, not a GGUF, or not a sound Gemma.
    """
    try:
        if path.is_dir():
            folder = model_folder(path)  # which says what any other folder is
            raise ModelLoadError(
                f"{path}: a checkpoint, not a GGUF file; convert it: gemlane convert model {folder} -o FILE"
            )
        header = read_header(path)
        summary = check_model(header)
    except ConvertError as error:
        raise ModelLoadError(f"{error}; {_REMEDY}") from error
    return header, summary

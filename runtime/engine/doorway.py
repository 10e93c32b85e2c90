"""Files are read in Python before llama.cpp sees them: their headers here, by the converter's rules.

An adapter's values are read where it enters the house (the registry); here only what could kill the process counts.
"""

from __future__ import annotations

from pathlib import Path

from convert.adapter_rules import AdapterSummary, check_adapter
from convert.errors import ConvertError
from convert.gguf_header import GgufHeader, read_header
from convert.model_rules import check_model
from runtime.errors import InvalidAdapter, ModelLoadError

_REMEDY = "make one with: gemlane convert model DIR -o FILE"


def check_model_file(path: Path) -> GgufHeader:
    """The header of a base model that llama.cpp may be given.

    Raises:
        ModelLoadError: there is no such file, it is not a regular one, not a GGUF, or not a sound Gemma.
    """
    if path.is_dir():
        raise ModelLoadError(f"{path} is a folder, not a GGUF file; {_REMEDY}")
    try:
        header = read_header(path)
        check_model(header)
    except ConvertError as error:
        raise ModelLoadError(f"{error}; {_REMEDY}") from error
    return header


def check_adapter_file(path: Path, base: GgufHeader) -> AdapterSummary:
    """What an adapter is that llama.cpp may be given.

    Raises:
        InvalidAdapter: the file cannot be read, or breaks a rule that its message names.
    """
    try:
        return check_adapter(read_header(path), base)
    except ConvertError as error:
        raise InvalidAdapter(str(error)) from error

"""The tiny Gemma's checkpoint and its adapters as they were trained, and as GGUF files by the real converter."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from convert.commands.arguments import main as convert

TINY_GEMMA: Final = Path(__file__).parent
BASE: Final = TINY_GEMMA / "base"
ADAPTERS: Final[Mapping[str, Path]] = MappingProxyType(
    {name: TINY_GEMMA / "adapters" / name for name in ("pirate", "shout", "tag")}
)
"""Name -> PEFT folder."""


def convert_base(output: Path, type_name: str) -> None:
    """Write the base model as GGUF, in a type that ``gemlane convert model --type`` knows.

    Raises:
        RuntimeError: the converter failed; it printed why.
    """
    _convert("model", BASE, "-o", output, "--type", type_name)


def convert_adapter(source: Path, base: Path, output: Path, type_name: str = "q8_0") -> None:
    """Write the adapter of the folder ``source`` as GGUF, in a type that ``gemlane convert adapter --type`` knows.

    Raises:
        RuntimeError: the converter failed; it printed why.
    """
    _convert("adapter", source, "--base", base, "-o", output, "--type", type_name)


def _convert(*arguments: str | Path) -> None:
    if convert([str(argument) for argument in arguments]) != 0:
        raise RuntimeError(f"gemlane convert failed: {arguments}")

"""Tries a conversion as far as it goes without reading weights: what would be refused, and what warned of."""

from pathlib import Path

from convert.adapters.adapter import refuse_unrepresentable
from convert.adapters.open import open_trained_adapter
from convert.conversion.conversion import Options, planned_adapter, planned_model
from convert.errors import ConvertError
from convert.folders import ADAPTER_CONFIG_NAME

_OPTIONS = Options("f16", base_digest="0" * 64)  # no type matters here, and the base need not be digested


def problems_of(folder: Path, base: Path | None) -> tuple[str | None, tuple[str, ...]]:
    """Say what `convert` would refuse about a folder, or None; and its warnings.

    Args:
        folder: A checkpoint, or a PEFT or MLX adapter.
        base: The base of an adapter, if it is to be checked against one.
    """
    try:
        if not (folder / ADAPTER_CONFIG_NAME).exists():
            with planned_model(folder, (), _OPTIONS) as conversion:
                return None, conversion.plan.warnings
        if base is not None:
            with planned_adapter(folder, base, _OPTIONS) as conversion:
                return None, conversion.plan.warnings
        with open_trained_adapter(folder) as adapter:
            refuse_unrepresentable(adapter)
            return None, adapter.warnings
    except ConvertError as error:
        return str(error), ()

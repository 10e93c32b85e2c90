"""What the converter's commands do with their parsed arguments: call a conversion, say what came of it."""

import argparse

from convert.adapter import ADAPTER_TYPES
from convert.conversion import Options, convert_adapter, convert_model
from convert.errors import InvalidOption
from convert.quantize import MODEL_TYPES, parse_type


def model(arguments: argparse.Namespace) -> int:
    """Run `convert model`."""
    options = _options(arguments, tuple(MODEL_TYPES))
    summary = convert_model(arguments.source, arguments.output, options)
    print(
        f"{arguments.output}: {options.type_name}, {summary.n_parameters:,} parameters, "
        f"{summary.size_bytes / 1e6:,.1f} MB"
    )
    return 0


def adapter(arguments: argparse.Namespace) -> int:
    """Run `convert adapter`."""
    options = _options(arguments, ADAPTER_TYPES)
    summary = convert_adapter(arguments.source, arguments.base, arguments.output, options)
    print(
        f"{arguments.output}: {options.type_name}, {summary.n_pairs} weights, rank {summary.max_rank}, "
        f"{summary.size_bytes / 1e6:,.2f} MB"
    )
    return 0


def _options(arguments: argparse.Namespace, known: tuple[str, ...]) -> Options:
    if not 1 <= arguments.threads <= 1024:
        raise InvalidOption(f"--threads must be from 1 to 1024, but is {arguments.threads}")
    return Options(parse_type(arguments.type, known), arguments.threads, arguments.force)

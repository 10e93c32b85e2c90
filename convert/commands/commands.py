"""Runs the commands on their parsed arguments: calls the package that does the work, and prints the result."""

import argparse
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from convert.adapters.adapter import STORED_TYPES
from convert.conversion.conversion import Conversion, Options, planned_adapter, planned_model, write
from convert.conversion.estimate import estimate
from convert.errors import InvalidOption
from convert.folders import user_path
from convert.models.mix import MODEL_TYPES, parse_type
from convert.native.child import Subject
from convert.native.verify import NO_EFFECT_KL, TEXTS, verify
from convert.rules.check import validate_adapter, validate_model

EXIT_DIFFERS = 1


def model(arguments: argparse.Namespace) -> int:
    """Run `convert model`."""
    options = _options(arguments, tuple(MODEL_TYPES))
    return _write_model(planned_model(arguments.source, (), options), arguments, options)


def merge(arguments: argparse.Namespace) -> int:
    """Run `merge`."""
    options = _options(arguments, tuple(MODEL_TYPES))
    parts = [_scaled(text) for text in arguments.adapters]
    return _write_model(planned_model(arguments.source, parts, options), arguments, options)


def adapter(arguments: argparse.Namespace) -> int:
    """Run `convert adapter`."""
    options = _options(arguments, STORED_TYPES)
    with planned_adapter(arguments.source, arguments.base, options) as conversion:
        if _announce(conversion, arguments, options):
            return 0
        base = conversion.base
        summary = write(conversion, arguments.output, options, lambda path: validate_adapter(path, base))
        _warn(warning for warning in summary.warnings if warning not in conversion.plan.warnings)
    print(
        f"{arguments.output}: {options.type_name}, {summary.n_pairs} weights, rank {summary.max_rank}, "
        f"{summary.size_bytes / 1e6:,.2f} MB"
    )
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Run `verify`.

    Raises:
        InvalidOption: Both sides are the same model and adapter.
    """
    reference = _subject(arguments.reference, arguments.reference_adapter)
    candidate = _subject(arguments.candidate or arguments.reference, arguments.adapter)
    if reference == candidate:
        raise InvalidOption("nothing to compare: give a second model, or an adapter with --adapter")
    result = verify(reference, candidate, arguments.text or TEXTS, arguments.threads)
    print(f"reference       {reference}")
    print(f"candidate       {candidate}")
    print(f"positions       {result.n_positions}")
    print(f"max difference  {result.max_difference:.4g}")
    print(f"mean KL         {result.mean_kl:.3g}")
    print(f"same top token  {result.top1:.1%}")
    is_effect_asked = reference.model == candidate.model and reference.adapter is None
    if is_effect_asked and result.mean_kl < NO_EFFECT_KL:
        print("warning: the adapter has no effect on these texts", file=sys.stderr)
    if arguments.max_kl is not None and result.mean_kl > arguments.max_kl:
        print(f"mean KL is above {arguments.max_kl:g}", file=sys.stderr)
        return EXIT_DIFFERS
    return 0


def _write_model(planned: AbstractContextManager[Conversion], arguments: argparse.Namespace, options: Options) -> int:
    with planned as conversion:
        if _announce(conversion, arguments, options):
            return 0
        summary = write(conversion, arguments.output, options, validate_model)
        _warn(warning for warning in summary.warnings if warning not in conversion.plan.warnings)
    print(
        f"{arguments.output}: {options.type_name}, {summary.n_parameters:,} parameters, "
        f"{summary.size_bytes / 1e6:,.1f} MB"
    )
    return 0


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _announce(conversion: Conversion, arguments: argparse.Namespace, options: Options) -> bool:
    """Print warnings, and the estimate if only that was asked for; say whether that is all."""
    _warn(conversion.plan.warnings)
    if arguments.dry_run:
        print(f"{arguments.output}: would be {options.type_name}")
        print("\n".join(estimate(conversion.plan, options.n_threads)))
    return bool(arguments.dry_run)


def _options(arguments: argparse.Namespace, known: tuple[str, ...]) -> Options:
    return Options(
        type_name=parse_type(arguments.type, known),
        n_threads=arguments.threads,
        force=arguments.force,
        is_legacy_alpha=getattr(arguments, "mlx_legacy_alpha", False),
        importance=getattr(arguments, "imatrix", None),
    )


def _scaled(text: str) -> tuple[Path, float]:
    """Split `PATH:SCALE`; a path alone has the scale 1."""
    path, colon, number = text.rpartition(":")
    if not colon or user_path(text).exists():
        return user_path(text), 1.0
    try:
        return user_path(path), float(number)
    except ValueError as error:
        raise InvalidOption(f"{text}: {number!r} is not a scale; write PATH:SCALE, as in pirate:0.5") from error


def _subject(model_path: Path, adapter_text: str | None) -> Subject:
    if adapter_text is None:
        return Subject(model_path)
    return Subject(model_path, *_scaled(adapter_text))

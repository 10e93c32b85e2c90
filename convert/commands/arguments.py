"""The converter's commands, for `gemlane` and for `python -m convert`.

A command declares its arguments here; the function that its handler names does the work. Modules that load numpy are
imported only when their command runs, so that `inspect` answers at once.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from convert.cores import n_cores
from convert.errors import ConvertError
from convert.folders import user_path

EXIT_OK: Final = 0
EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse names it no other way


def add_commands(subparsers: "Subparsers") -> None:
    """Add `convert`, `merge`, `inspect` and `verify` to a command line; run what was parsed with `run`."""
    parser = subparsers.add_parser("convert", help="convert a Gemma checkpoint or a LoRA adapter to GGUF")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="model|adapter")
    _add_model(kinds)
    _add_adapter(kinds)
    _add_others(subparsers)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of `python -m convert`."""
    parser = argparse.ArgumentParser(prog="convert", description="Gemma checkpoints and LoRA adapters to GGUF.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_model(commands)
    _add_adapter(commands)
    _add_others(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m convert`; returns the exit code."""
    return run(build_parser().parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run a parsed command; returns the exit code. A `ConvertError` becomes one line on standard error."""
    module, _, function = options.handler.partition(":")
    handler: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), function)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = handler(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has closed it (`| head`); what is still buffered is dropped.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except ConvertError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _add_parser(subparsers: "Subparsers", name: str, what: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command whose help shows what it does and how it is called."""
    return subparsers.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog="\n".join(["examples:", *(f"  %(prog)s {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_model(subparsers: "Subparsers") -> None:
    what = "convert a Hugging Face checkpoint to a GGUF base model"
    examples = ("./gemma-7b-it -o gemma-7b-it.gguf", "./gemma-7b-it -o gemma-7b-it.gguf --type q8_0 --dry-run")
    parser = _add_parser(subparsers, "model", what, *examples)
    parser.add_argument("source", type=user_path, metavar="DIR", help="folder with config.json and *.safetensors")
    _add_model_output(parser)
    parser.set_defaults(handler="convert.commands.commands:model")


def _add_adapter(subparsers: "Subparsers") -> None:
    what = "convert a LoRA adapter (PEFT, MLX or GGUF) to a GGUF adapter"
    examples = ("./my-lora --base gemma-7b-it.gguf -o my-lora.gguf", "my-lora.gguf --base ./gemma-7b-it -o small.gguf")
    parser = _add_parser(subparsers, "adapter", what, *examples)
    parser.add_argument("source", type=user_path, metavar="DIR|FILE", help="a PEFT or MLX folder, or a GGUF adapter")
    parser.add_argument("--base", type=user_path, required=True, help="the base model: a GGUF file or a checkpoint")
    _add_legacy_alpha(parser)
    _add_output(parser, "q8_0", "f32, f16, bf16, q8_0 (default), q4_0, q4_k")
    parser.set_defaults(handler="convert.commands.commands:adapter")


def _add_others(subparsers: "Subparsers") -> None:
    what = "merge adapters into a checkpoint, as a GGUF base model"
    examples = ("./gemma-7b-it ./my-dora -o merged.gguf", "./gemma-7b-it ./pirate:0.6 ./formal:0.4 -o blend.gguf")
    merge = _add_parser(subparsers, "merge", what, *examples)
    merge.add_argument("source", type=user_path, metavar="DIR", help="the base's checkpoint")
    merge.add_argument("adapters", nargs="+", metavar="ADAPTER[:SCALE]", help="several add up; the scale is 1 if none")
    _add_legacy_alpha(merge)
    _add_model_output(merge)
    merge.set_defaults(handler="convert.commands.commands:merge")

    what = "say what a GGUF file, a checkpoint or an adapter is, and what converting it would refuse"
    inspect = _add_parser(subparsers, "inspect", what, "./my-lora --base gemma-7b-it.gguf", "gemma-7b-it.gguf --json")
    inspect.add_argument("path", type=user_path, metavar="FILE|DIR")
    inspect.add_argument("--base", type=user_path, help="check that an adapter fits this base")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.set_defaults(handler="convert.commands.inspect:run")

    what = "compare the logits of two models, or of one with an adapter"
    examples = ("gemma-f16.gguf gemma-q4_k_m.gguf --max-kl 0.02", "gemma.gguf --adapter my-lora.gguf:0.5")
    verify = _add_parser(subparsers, "verify", what, *examples)
    verify.add_argument("reference", type=user_path, metavar="REFERENCE", help="a GGUF base model")
    verify.add_argument("candidate", type=user_path, nargs="?", metavar="CANDIDATE", help="default: the same model")
    verify.add_argument("--adapter", metavar="FILE[:SCALE]", help="a GGUF adapter for the candidate")
    verify.add_argument("--reference-adapter", metavar="FILE[:SCALE]", help="a GGUF adapter for the reference")
    verify.add_argument("--text", action="append", help="what to run instead of the built-in texts; may be repeated")
    verify.add_argument("--max-kl", type=float, metavar="KL", help="exit with 1 if the mean divergence is above")
    verify.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    verify.set_defaults(handler="convert.commands.commands:compare")


def _add_legacy_alpha(parser: argparse.ArgumentParser) -> None:
    legacy = "an MLX adapter of mlx-lm from January to June 2024: its scale is times alpha / rank"
    parser.add_argument("--mlx-legacy-alpha", action="store_true", help=legacy)


def _add_model_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--imatrix", type=user_path, metavar="GGUF", help="an importance matrix from llama-imatrix")
    _add_output(parser, "q4_k_m", "f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m (default), q4_0, ...")


def _add_output(parser: argparse.ArgumentParser, default_type: str, type_help: str) -> None:
    parser.add_argument("-o", "--output", type=user_path, required=True, metavar="FILE", help="the GGUF file to make")
    parser.add_argument("--type", default=default_type, metavar="TYPE", help=type_help)
    parser.add_argument(
        "--threads", type=int, default=n_cores(), metavar="N", help="default: all cores, within the CPU quota"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--dry-run", action="store_true", help="only say sizes, types, memory and time")

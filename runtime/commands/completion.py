"""``gemlane completion``: the completion script of a shell."""

from __future__ import annotations

import argparse
import importlib

import shtab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's argument."""
    parser.description = "Print a shell's completion script, for example: source <(gemlane completion bash)"
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def run(arguments: argparse.Namespace) -> int:
    """Print the script; the exit status."""
    # The table of commands names this module, so it is asked for when it is needed.
    print(shtab.complete(importlib.import_module("runtime.cli").build_parser(), arguments.shell))
    return 0

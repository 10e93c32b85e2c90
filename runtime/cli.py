"""The ``gemlane`` command: a table of commands, whose modules are loaded when they are named.

``gemlane --help`` loads little more than ``argparse``, so that it answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from convert.commands import arguments as convert_commands
from runtime.errors import GemlaneError

EXIT_FAULT: Final = 2
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Its module has ``add_arguments(parser)`` and ``run(arguments) -> exit status``."""

    name: str
    help: str
    module: str


COMMANDS: Final = (
    Command("serve", "serve a base model and its adapters over HTTP", "runtime.commands.serve"),
    Command("chat", "talk to a running server, under several adapters side by side", "runtime.commands.chat"),
    Command("adapters", "list, add, replace, remove and pin a running server's adapters", "runtime.commands.adapters"),
    Command("bench", "put a load on a running server, and show how fast it answers", "runtime.commands.bench"),
    Command("doctor", "say whether serve would work here, and what to do if not", "runtime.commands.doctor"),
    Command("config", "show every setting, and where it comes from", "runtime.commands.config"),
    Command("completion", "print the completion script of a shell", "runtime.commands.completion"),
)


def build_parser(named: str | None = None) -> argparse.ArgumentParser:
    """The parser of every command.

    Args:
        named: the command whose arguments are wanted; those of the other commands in ``COMMANDS`` are left out, and
            their modules are not loaded. None wants all of them.
    """
    parser = argparse.ArgumentParser(
        prog="gemlane",
        description="Gemma with any number of LoRA adapters, chosen per request, with no network at all.",
        epilog="gemlane COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="store_true", help="versions of gemlane and of llama.cpp, and its commit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        added = commands.add_parser(command.name, help=command.help)
        if named in (None, command.name):
            module = importlib.import_module(command.module)
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    convert_commands.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0 done, 1 it went wrong, 2 the input was wrong, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(next((word for word in words if not word.startswith("-")), ""))
    parsed = parser.parse_args(words)
    try:
        if parsed.version:
            return int(importlib.import_module("runtime.commands.version").run(parsed))
        if parsed.command is None:
            parser.print_help(sys.stderr)
            return EXIT_FAULT
        return int(getattr(parsed, "run", convert_commands.run)(parsed))
    except GemlaneError as error:
        print(f"gemlane: {error}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

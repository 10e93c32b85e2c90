"""What `inspect` does with its parsed arguments. A room of its own, so that it opens without the heavy ones."""

import argparse
import json

from convert.commands.inspection import inspect


def run(arguments: argparse.Namespace) -> int:
    """Run `inspect`."""
    facts = inspect(arguments.path, arguments.base)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    for key, value in facts.items():
        if value is not None:
            print(f"{key:<24}{_text(value)}")
    return 0


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{n} {name}" for name, n in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)

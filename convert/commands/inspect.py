"""Runs `inspect` on its parsed arguments. For a GGUF file no numpy is loaded, so that it answers at once."""

import argparse
import importlib
import json
from pathlib import Path

from convert.commands.inspection import inspect


def run(arguments: argparse.Namespace) -> int:
    """Run `inspect`."""
    facts = inspect(arguments.path, arguments.base)
    if arguments.path.is_dir():
        trial = importlib.import_module("convert.commands.trial")  # which loads numpy
        problem, warnings = trial.problems_of(Path(str(facts["path"])), arguments.base)
        facts |= {"problem": problem, "warnings": list(warnings) or None}
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
    if isinstance(value, list) and all(isinstance(one, str) and " " in one for one in value):
        return "\n                        ".join(value)  # sentences
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)

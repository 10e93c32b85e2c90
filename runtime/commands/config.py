"""``gemlane config``: every setting, its value, and where the value comes from."""

from __future__ import annotations

import argparse
import json

from runtime import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: those of ``serve``, and two."""
    parser.description = "Show what gemlane serve would use: a flag beats the environment, which beats the file."
    parser.add_argument("--set", action="store_true", dest="only_set", help="only what differs from the default")
    parser.add_argument("--json", action="store_true", help="as JSON")
    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the settings; the exit status."""
    config.resolve(arguments)
    choices = [one for one in config.choices(arguments) if one.source != config.DEFAULT or not arguments.only_set]
    if arguments.json:
        print(json.dumps({one.name: {"value": one.value, "source": one.source} for one in choices}, indent=1))
        return 0
    width = max((len(one.name) for one in choices), default=0)
    for one in choices:
        print(f"{one.name:<{width}}  {one.value if one.value != '' else '-'}  ({one.source})")
    return 0

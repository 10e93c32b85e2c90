"""What llama.cpp says of itself, as one JSON object on standard output.

Run as a process of its own, since a library that was built for another processor dies while it starts.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import llama_cpp.llama_cpp as native

from runtime.llama.library import COMMIT, VERSION, Library, gpus


def main() -> int:
    """Print the facts; the exit status."""
    Library()
    facts = {
        "version": VERSION,
        "commit": COMMIT,
        "system_info": native.llama_print_system_info().decode(errors="replace"),
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus()],
    }
    json.dump(facts, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

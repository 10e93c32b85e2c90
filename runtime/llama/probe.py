"""What llama.cpp says of itself, as one JSON object on standard output.

Run as a process of its own, since a library that was built for another processor dies while it starts.
"""

from __future__ import annotations

import json
import sys

import llama_cpp.llama_cpp as native

from runtime.llama.devices import all_devices, backend_names
from runtime.llama.library import COMMIT, VERSION, Library


def main() -> int:
    """Print the facts; the exit status."""
    Library()
    facts = {
        "version": VERSION,
        "commit": COMMIT,
        "system_info": native.llama_print_system_info().decode(errors="replace"),
        "backends": backend_names(),
        "gpus": [
            {"name": f"{device.name} ({device.description})", "free_bytes": device.free_bytes}
            for device in all_devices()
        ],
    }
    json.dump(facts, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

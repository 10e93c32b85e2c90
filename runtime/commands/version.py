"""``gemlane --version``: what is installed, down to the commit of llama.cpp."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

from runtime.doctor.build import probe_library


def run(_arguments: argparse.Namespace) -> int:
    """Print one line; 1 if llama.cpp does not start."""
    library = probe_library()
    version = f"gemlane {importlib.metadata.version('gemlane')}"
    if library.error:
        print(f"{version} (llama.cpp does not start: {library.error}; see gemlane doctor)")
        return 1
    facts = library.facts
    print(
        f"{version} (llama.cpp {facts['commit']}, llama-cpp-python {facts['version']}, Python "
        f"{platform.python_version()})"
    )
    return 0

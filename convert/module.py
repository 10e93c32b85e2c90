"""The command and environment that run one of our modules as a process, from any working folder."""

import os
import sys
from pathlib import Path
from typing import Final

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[1]


def module_command(module: str) -> tuple[str, ...]:
    """Return the command that runs `module` with this Python.

    -P: a folder called `runtime` or `convert` in the working folder must not be taken for ours.
    """
    return (sys.executable, "-P", "-m", module)


def module_environment() -> dict[str, str]:
    """Return this process's environment, in which our packages are found first, installed or not."""
    places = (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}

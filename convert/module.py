"""How one of our own modules is run as a process of its own, wherever the user happens to stand."""

import os
import sys
from pathlib import Path
from typing import Final

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[1]


def module_command(module: str) -> tuple[str, ...]:
    """The command that runs `module` with this Python.

    -P: a folder called `runtime` or `convert` in the working folder must not be taken for ours.
    """
    return (sys.executable, "-P", "-m", module)


def module_environment() -> dict[str, str]:
    """This process's environment, in which our packages are found first, installed or not."""
    places = (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}

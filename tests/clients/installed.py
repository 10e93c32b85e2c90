"""The clients under test, each pinned, installed once into ``.gemlane/clients``, apart from the project's environment.

``python -m tests.clients.installed`` installs what is not there yet; it is the only part that reaches for a network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = ROOT / ".gemlane" / "clients"
PROGRAMS = HERE / "programs"
PYTHON_SETS = ("newest", "earlier", "agents", "scoring", "chains", "openwebui")
"""Each a file of ``requirements/`` and a virtual environment; majors of one package cannot share one."""
NPM_SETS = ("npm", "wrangler-4.35")
"""Each a ``package.json`` and a folder of ``node_modules``."""
NPM = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel", "error")


def python(name: str) -> Path:
    """The interpreter of a Python set."""
    return HOME / name / "bin" / "python"


def package(name: str, npm_set: str = "npm") -> Path:
    """The folder of an npm package."""
    return HOME / npm_set / "node_modules" / name


def version(name: str, npm_set: str = "npm") -> str:
    """The version of an npm package, as it says itself."""
    return str(json.loads((package(name, npm_set) / "package.json").read_text())["version"])


def node() -> str:
    """Node 22 as npm brings it, else the one on the path."""
    bundled = sorted(HOME.glob("npm/node_modules/node-*/bin/node"))
    return str(bundled[0]) if bundled else "node"


def program(name: str, file: str) -> tuple[str, str]:
    """The command of a file of ``programs/``; Node finds packages only beside the file it runs."""
    if file.endswith(".py"):
        return str(python(name)), str(PROGRAMS / file)
    beside = HOME / name / "programs"
    shutil.copytree(PROGRAMS, beside, dirs_exist_ok=True)
    return node(), str(beside / file)


def is_installed(name: str) -> bool:
    """Whether a set is there as this checkout wants it."""
    stamp = HOME / name / "installed"
    return stamp.is_file() and stamp.read_text() == _wanted(name).read_text()


def install(name: str) -> None:
    """Install a set from scratch.

    Raises:
        subprocess.CalledProcessError: pip or npm could not; what they said is on stderr.
        FileNotFoundError: there is no npm.
    """
    folder = HOME / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name in PYTHON_SETS:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip: list[str | Path] = [python(name), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", _wanted(name)], check=True)
    else:
        shutil.copy(_wanted(name), folder / "package.json")
        subprocess.run(NPM, cwd=folder, check=True)
    shutil.copy(_wanted(name), folder / "installed")


def main(names: Iterable[str] = (*PYTHON_SETS, *NPM_SETS)) -> None:
    """Install what is missing; what cannot be is named, and its tests will be skipped."""
    for name in names:
        if not is_installed(name):
            print(f"clients: installing {name} into {HOME / name}", file=sys.stderr)
            try:
                install(name)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"clients: {name} could not be installed: {error}", file=sys.stderr)
    subprocess.run([ROOT / "scripts" / "worker", "--install"], check=False)


def _wanted(name: str) -> Path:
    if name in PYTHON_SETS:
        return HERE / "requirements" / f"{name}.txt"
    return HERE / "packages" / f"{name}.json"


if __name__ == "__main__":
    main()

"""What the browser tests need: the ``browser`` extra of pyproject.toml in this environment, and a Chromium.

``python -m tests.browser.installed`` installs the extra where it is missing, and says how to get Chromium where none is
found. The browser itself is never downloaded: the machine's own package manager keeps it up to date.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "CHROMIUM"
COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_APPLICATIONS = ("Chromium", "Google Chrome")
HOW_TO_GET = f"""no Chromium was found. Install one:
  Debian, Ubuntu   apt-get install chromium
  Fedora           dnf install chromium
  macOS            brew install --cask chromium
or set {VARIABLE} to the program of the Chromium or Chrome that is to be used."""


def chromium() -> str | None:
    """The program of the browser: what ``CHROMIUM`` names, else the first that is found."""
    if named := os.environ.get(VARIABLE):
        return named
    on_path = (shutil.which(command) for command in COMMANDS)
    in_applications = (f"/Applications/{name}.app/Contents/MacOS/{name}" for name in MAC_APPLICATIONS)
    return next((found for found in (*on_path, *in_applications) if found and Path(found).is_file()), None)


def pins() -> list[str]:
    """The requirements of the ``browser`` extra."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["browser"])


def missing(requirements: Iterable[str]) -> list[str]:
    """Those of the exact requirements that this environment does not hold."""

    def is_there(requirement: str) -> bool:
        name, _, version = requirement.partition("==")
        try:
            return importlib.metadata.version(name) == version
        except importlib.metadata.PackageNotFoundError:
            return False

    return [requirement for requirement in requirements if not is_there(requirement)]


def main() -> int:
    """Install what is missing. Gives the exit status: 2 where there is no Chromium."""
    if wanted := missing(pins()):
        print(f"browser: installing {', '.join(wanted)}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *wanted], check=True)
    found = chromium()
    print(f"browser: {found or HOW_TO_GET}", file=sys.stderr)
    return 0 if found else 2


if __name__ == "__main__":
    sys.exit(main())

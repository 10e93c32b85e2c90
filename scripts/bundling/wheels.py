"""The wheels of a bundle: gemlane's own, its dependencies, and llama.cpp built for many processors."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

PORTABLE_CMAKE: Final = (
    "-DLLAVA_BUILD=OFF",
    "-DGGML_NATIVE=OFF",
    # One library for each generation of processors; llama.cpp loads the best one at the start.
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    # Beside libllama, where they are looked for, and not a second time in the environment's own lib folder.
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
)
_LLAMA: Final = "llama-cpp-python"


class BundleError(Exception):
    """A bundle cannot be made; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel, with what its metadata says."""

    path: Path
    name: str
    version: str
    licence: str
    sha256: str


def collect(root: Path, folder: Path, cache: Path, *, is_native: bool, with_cluster: bool = False) -> list[Wheel]:
    """Put every wheel that an installation needs into ``folder``, pip's own included.

    Args:
        root: the repository.
        folder: where the wheels go.
        cache: where llama.cpp's portable wheel is kept, since building it takes many minutes.
        is_native: take the llama.cpp that pip builds for this machine.
        with_cluster: take what ``--engine ray`` needs, too.

    Raises:
        BundleError: pip failed.
    """
    if not is_native:
        shutil.copy2(_portable_llama(_pin(root, _LLAMA), cache), folder)
    elif (wheel := _wheel_of_setup(root)) is not None:
        shutil.copy2(wheel, folder)
    _pip(
        "wheel",
        "--wheel-dir",
        str(folder),
        "--find-links",
        str(folder),
        f"{root}[cluster]" if with_cluster else str(root),
    )
    _pip("wheel", "--wheel-dir", str(folder), "--no-deps", "pip")
    return [read_wheel(path) for path in sorted(folder.glob("*.whl"))]


def _pin(root: Path, name: str) -> str:
    """The line of pyproject.toml that pins ``name``."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(str(line) for line in project["dependencies"] if line.startswith(f"{name}=="))


def _portable_llama(requirement: str, cache: Path) -> Path:
    """llama.cpp's wheel for many processors, built unless the cache has it."""
    key = hashlib.sha256(" ".join((requirement, sys.version, *PORTABLE_CMAKE)).encode()).hexdigest()[:12]
    folder = cache / key
    if not (found := list(folder.glob("*.whl"))):
        flags = {"CMAKE_ARGS": " ".join(PORTABLE_CMAKE)}
        # AMX kernels are left out: GCC before 11.5, 12.4, 13.3 and 14 miscompiles them (GCC bug 114098).
        flags |= {name: f"{os.environ.get(name, '')} -U__AMX_INT8__" for name in ("CFLAGS", "CXXFLAGS")}
        print("bundle: building llama.cpp for many processors; this takes 20 to 40 minutes, once", file=sys.stderr)
        _pip("wheel", "--wheel-dir", str(folder), "--no-deps", "--no-cache-dir", requirement, environment=flags)
        found = list(folder.glob("*.whl"))
    return found[0]


def _pip(*arguments: str, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    if subprocess.run(command, env=os.environ | (environment or {}), check=False).returncode:
        raise BundleError(f"pip could not make the wheels: pip {' '.join(arguments)}")


def _wheel_of_setup(root: Path) -> Path | None:
    """The wheel of llama.cpp that ``scripts/setup`` built, which it names in the third line of its stamp."""
    stamp = root / ".venv" / ".gemlane-installed"
    lines = stamp.read_text().splitlines() if stamp.is_file() else []
    wheel = Path(lines[2]) if len(lines) > 2 and lines[2] else None
    return wheel if wheel is not None and wheel.is_file() else None


def read_wheel(path: Path) -> Wheel:
    """What a wheel's own metadata and bytes say."""
    with zipfile.ZipFile(path) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    licence = metadata["License-Expression"] or metadata["License"] or ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Wheel(path, metadata["Name"], metadata["Version"], licence.strip().partition("\n")[0], digest)


def render_lock(wheels: Sequence[Wheel]) -> str:
    """Requirements with their hashes, for ``pip install --require-hashes``; pip itself is not installed."""
    return "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wheels if one.name != "pip")

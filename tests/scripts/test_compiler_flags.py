"""Builds of llama.cpp leave out AMX where, and only where, the compiler miscompiles it."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("c++"), reason="needs a compiler for x86-64")
@pytest.mark.parametrize(
    ("major", "minor", "is_affected"),
    [(11, 4, True), (11, 5, False), (12, 3, True), (12, 4, False), (13, 2, True), (13, 3, False), (14, 0, False)],
)
def test_gcc_before_the_mended_releases_builds_without_amx(
    tmp_path: Path, major: int, minor: int, *, is_affected: bool
) -> None:
    """Releases before 11.5, 12.4 and 13.3 get the flag beside the user's own and say so; later ones get nothing."""
    compiler = tmp_path / "c++"
    version = f"-U__GNUC__ -D__GNUC__={major} -U__GNUC_MINOR__ -D__GNUC_MINOR__={minor} -U__clang__"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} -w {version} -D__AMX_INT8__=1 "$@"\n')
    compiler.chmod(0o755)
    script = f'say() {{ echo "said $*"; }}; . {SCRIPTS}/compiler_flags; echo "$CXXFLAGS" "$CFLAGS"'
    environment = os.environ | {"CXX": str(compiler), "CXXFLAGS": "-O1", "CFLAGS": "-O2"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ("miscompiles AMX" in done.stdout) == is_affected
    assert done.stdout.splitlines()[-1] == ("-O1 -U__AMX_INT8__ -O2 -U__AMX_INT8__" if is_affected else "-O1 -O2")


@pytest.mark.parametrize("name", ["setup", "peers", "gpu_trial"])
def test_every_build_of_the_processors_kernels_asks(name: str) -> None:
    """Scripts that compile llama.cpp for the machine at hand take their flags from the one place."""
    assert "scripts/compiler_flags\n" in (SCRIPTS / name).read_text()

"""What doctor says of the program and its library."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
from pathlib import Path

import pytest

from runtime.config import ClusterSettings
from runtime.doctor.build import (
    LibraryReport,
    check_build,
    check_cluster,
    check_devices,
    check_http,
    describe_end,
    probe_library,
    wanted_flags,
)
from runtime.doctor.finding import Severity
from runtime.doctor.machine import CPU_FLAGS
from tests.end_to_end.serving import COMMAND, environment

FACTS = {
    "version": "0.3.36",
    "commit": "0c1e570",
    "system_info": "CPU : SSE3 = 1 | AVX2 = 1 | AVX512_VBMI = 1 | AMX_INT8 = 0 | OPENMP = 1 | ",
    "gpus": [],
}


def test_the_real_library_answers() -> None:
    """The installed llama.cpp reports its version, its commit and its features."""
    report = probe_library()
    assert report.error == ""
    assert report.facts["version"] == "0.3.36"
    assert wanted_flags(report, CPU_FLAGS)


def test_ray_is_looked_for_where_replicas_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine of this machine needs no Ray; replicas without it are a fault that says how to install it."""
    versions = {"ray": "2.60.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    replicas = ClusterSettings("ray", 2)
    assert list(check_cluster(ClusterSettings())) == []
    (found,) = check_cluster(replicas)
    assert (found.severity, found.words) == (Severity.OK, "2 replicas on Ray 2.60.0")
    versions.clear()
    (missing,) = check_cluster(replicas)
    assert missing.severity is Severity.FAULT
    assert "gemlane[cluster]" in missing.advice


def test_a_library_that_cannot_be_loaded_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without the library gives its own words, and the way out."""
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    _, finding = check_build(probe_library())
    assert finding.severity is Severity.FAULT
    assert "llama" in finding.words
    assert "scripts/setup" in finding.advice


def test_doctor_outlives_a_broken_library(tmp_path: Path) -> None:
    """The whole command runs without llama.cpp's library, and names the fault: nothing it imports loads the library."""
    done = subprocess.run(
        [*COMMAND, "doctor", "--port", "0"],
        env=environment() | {"LLAMA_CPP_LIB_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "fault llama.cpp" in done.stdout
    assert "scripts/setup" in done.stdout


@pytest.mark.parametrize(
    ("status", "stderr", "words"),
    [
        (-signal.SIGILL, "", "the processor lacks an instruction that llama.cpp was built with"),
        (-signal.SIGSEGV, "", "llama.cpp's library was killed by SIGSEGV while it started"),
        (1, "Traceback\nOSError: no libllama.so\n", "OSError: no libllama.so"),
        (3, "", "the process ended with status 3"),
    ],
)
def test_every_end_has_its_words(status: int, stderr: str, words: str) -> None:
    """An illegal instruction, another signal and an error with words of its own have different words."""
    assert describe_end(status, stderr) == words


def test_features_of_the_build_are_the_librarys(tmp_path: Path) -> None:
    """Only features that are on and that the kernel has a name for are wanted."""
    assert wanted_flags(LibraryReport(FACTS), CPU_FLAGS, tmp_path) == ["pni", "avx2", "avx512vbmi"]


def test_features_of_a_bundle_are_its_own(tmp_path: Path) -> None:
    """A bundle's record counts, also where the library cannot say anything any more."""
    (tmp_path / "bundle.env").write_text("VERSION=1\nCPU_FLAGS=avx2 fma\n")
    assert wanted_flags(LibraryReport({}, "killed"), CPU_FLAGS, tmp_path) == ["avx2", "fma"]


def test_gpus_are_named_with_their_memory() -> None:
    """A GPU shows its free memory; asking for GPU layers without one is a note."""
    gpu = FACTS | {"gpus": [{"name": "H100", "free_bytes": 80_000_000_000}]}
    assert [one.words for one in check_devices(LibraryReport(gpu), "auto")] == ["H100, 80.0 GB free"]
    assert [one.severity for one in check_devices(LibraryReport(FACTS), "33")] == [Severity.NOTE]


def test_the_python_parser_of_http_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aiohttp without its C parser is refused, with the variable that switches the parser off."""
    assert check_http().severity is Severity.OK
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    finding = check_http()
    assert finding.severity is Severity.FAULT
    assert "AIOHTTP_NO_EXTENSIONS" in finding.advice

"""The program itself: versions, llama.cpp's library, the HTTP parser."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from convert.module import module_command, module_environment
from runtime.config import ClusterSettings
from runtime.doctor.finding import Finding, fault, note, ok

_TIMEOUT_S: Final = 60
_ILLEGAL: Final = "the processor lacks an instruction that llama.cpp was built with"


@dataclass(frozen=True, slots=True)
class LibraryReport:
    """What llama.cpp says of itself, or why it says nothing."""

    facts: dict[str, Any]
    error: str = ""


def probe_library() -> LibraryReport:
    """Start llama.cpp in a process of its own, since it may end that process."""
    try:
        done = subprocess.run(
            module_command("runtime.llama.probe"),
            env=module_environment(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return LibraryReport({}, f"llama.cpp did not start within {_TIMEOUT_S} s")
    if done.returncode == 0:
        return LibraryReport(json.loads(done.stdout))
    return LibraryReport({}, describe_end(done.returncode, done.stderr))


def describe_end(status: int, stderr: str) -> str:
    """Why the process of llama.cpp ended, in words."""
    if status == -signal.SIGILL:
        return _ILLEGAL
    if status < 0:
        return f"llama.cpp's library was killed by {signal.Signals(-status).name} while it started"
    last = stderr.strip().rpartition("\n")[2]
    return last or f"the process ended with status {status}"


def check_build(library: LibraryReport) -> Iterator[Finding]:
    """Versions, and whether llama.cpp starts."""
    version = importlib.metadata.version("gemlane")
    words = f"gemlane {version}, Python {platform.python_version()}"
    if library.error:
        yield ok("build", words)
        yield fault("llama.cpp", library.error, "Build it again on this machine: rm -r .venv && scripts/setup")
        return
    facts = library.facts
    yield ok("build", f"{words}, llama-cpp-python {facts['version']}, llama.cpp {facts['commit']}")


def check_devices(library: LibraryReport, gpu_layers: str) -> Iterator[Finding]:
    """Which devices llama.cpp sees."""
    names = [f"{gpu['name']}, {gpu['free_bytes'] / 1e9:.1f} GB free" for gpu in library.facts.get("gpus", ())]
    if names:
        yield ok("devices", "; ".join(names))
    elif gpu_layers not in ("auto", "0"):
        yield note("devices", f"no GPU, so --gpu-layers {gpu_layers} has no effect", "The README has Metal and CUDA")
    else:
        yield ok("devices", "the processor")


def check_cluster(settings: ClusterSettings) -> Iterator[Finding]:
    """Whether Ray is there, where the replicas of ``--engine ray`` are asked for."""
    if settings.engine != "ray":
        return
    try:
        yield ok("cluster", f"{settings.replicas} replicas on Ray {importlib.metadata.version('ray')}")
    except importlib.metadata.PackageNotFoundError:
        yield fault("cluster", "Ray is not installed", "Install it: pip install 'gemlane[cluster]'")


def check_http() -> Finding:
    """Whether aiohttp parses HTTP with its C extension; its Python parser has let requests be smuggled.

    Source: PYSEC-2026-4371.
    """
    probe = "import aiohttp.http_parser as p; print(p.HttpRequestParser is not p.HttpRequestParserPy)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    version = importlib.metadata.version("aiohttp")
    if done.stdout.strip() == "True":
        return ok("HTTP", f"aiohttp {version} with its C parser")
    return fault(
        "HTTP",
        f"aiohttp {version} runs without its C parser",
        "Unset AIOHTTP_NO_EXTENSIONS, or install aiohttp again from a wheel",
    )


def wanted_flags(library: LibraryReport, names: dict[str, str], prefix: Path = Path(sys.prefix)) -> Sequence[str]:
    """Processor features that llama.cpp was built with: as the bundle says, else as the library says."""
    bundle = prefix / "bundle.env"
    if bundle.exists():
        line = next((one for one in bundle.read_text().splitlines() if one.startswith("CPU_FLAGS=")), "CPU_FLAGS=")
        return line.partition("=")[2].split()
    info = str(library.facts.get("system_info", ""))
    features = dict(part.strip().rpartition(" = ")[::2] for part in info.partition(":")[2].split("|") if "=" in part)
    return [flag for name, flag in names.items() if features.get(name) == "1"]

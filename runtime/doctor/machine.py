"""The machine: processor, threads and quota, memory."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.cores import cpu_quota
from runtime.doctor.finding import Finding, fault, note, ok

CPU_FLAGS: Final = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX_VNNI": "avx_vnni",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
"""llama.cpp's name of a processor feature -> the kernel's (``/proc/cpuinfo``)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the operating system says."""

    cpu_flags: frozenset[str]
    """Empty where there is no ``/proc/cpuinfo``."""
    n_cpus: int
    """Processors that this process may run on."""
    quota_cpus: float | None
    """Processors' worth of time that a control group allows, or None."""
    memory_bytes: int
    """Memory that programs may still take, swap not counted."""
    memory_reason: str
    """Where that limit comes from."""


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at the machine; ``root`` is where ``proc`` and ``sys`` are."""
    memory, reason = _memory(root)
    for group in _cgroups(root):
        free = _cgroup_memory(group)
        if free is not None and free < memory:
            memory, reason = free, "left by the control group's memory.max"
    n_cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Machine(_flags(root), n_cpus, cpu_quota(root), memory, reason)


def _flags(root: Path) -> frozenset[str]:
    text = _text(root / "proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups (version 2), innermost first."""
    found = re.search(r"^0::(/.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    folder = root / "sys/fs/cgroup"
    inner = folder / (found[1].lstrip("/") if found else "")
    while True:
        yield inner
        if inner == folder or folder not in inner.parents:
            return
        inner = inner.parent


def _cgroup_memory(group: Path) -> int | None:
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    return max(0, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else None


def _memory(root: Path) -> tuple[int, str]:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024, "available"
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "in this machine"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def check_processor(machine: Machine, wanted: Sequence[str]) -> Finding:
    """Whether the processor has every feature that llama.cpp was built with; ``wanted`` are the kernel's names."""
    missing = [flag for flag in wanted if machine.cpu_flags and flag not in machine.cpu_flags]
    if missing:
        return fault(
            "processor",
            f"llama.cpp was built with {', '.join(missing)}, which this processor lacks: it would die of an illegal "
            "instruction",
            "Build it here (scripts/setup), or make a bundle without --native",
        )
    return ok("processor", f"has what llama.cpp was built with: {' '.join(wanted) or 'no special features'}")


def check_threads(machine: Machine, threads: int, n_cores: int) -> Finding:
    """Whether ``--threads`` fits the cores and the quota; 0 threads are one for each of ``n_cores``."""
    chosen = threads or n_cores
    allowed = min(machine.n_cpus, machine.quota_cpus or machine.n_cpus)
    words = f"{_plural(chosen, 'thread')} on {_plural(n_cores, 'core')}"
    if machine.quota_cpus is not None and chosen > machine.quota_cpus:
        return note(
            "threads",
            f"{words}, but a control group allows the time of {machine.quota_cpus:g}: threads wait for each other",
            f"Give --threads {max(1, int(machine.quota_cpus))}",
        )
    if chosen > allowed:
        return note(
            "threads", f"{words}, {machine.n_cpus} processors: more threads are slower", f"Give --threads {n_cores}"
        )
    return ok("threads", words)


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

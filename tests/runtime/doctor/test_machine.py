"""What doctor says of a machine that the test makes up."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.doctor.finding import Severity
from runtime.doctor.machine import Machine, check_processor, check_threads, read_machine

GIB = 1 << 30


def machine(**changes: object) -> Machine:
    """Four processors with AVX2, no quota, 8 GiB."""
    values = {
        "cpu_flags": frozenset({"avx", "avx2"}),
        "n_cpus": 4,
        "quota_cpus": None,
        "memory_bytes": 8 * GIB,
        "memory_reason": "available",
    }
    return Machine(**(values | changes))  # type: ignore[arg-type]


def make_root(root: Path, **files: str) -> Path:
    """A root folder with the given files; ``__`` stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_is_read_from_proc(tmp_path: Path) -> None:
    """Flags and free memory are those of cpuinfo and meminfo."""
    root = make_root(
        tmp_path,
        proc__cpuinfo="processor\t: 0\nflags\t\t: fpu avx avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx avx2\n",
        proc__meminfo="MemTotal:       16000 kB\nMemAvailable:    8000 kB\n",
    )
    found = read_machine(root)
    assert found.cpu_flags == {"fpu", "avx", "avx2"}
    assert (found.memory_bytes, found.memory_reason) == (8000 * 1024, "available")
    assert found.quota_cpus is None


def test_a_control_group_bounds_memory_and_time(tmp_path: Path) -> None:
    """The tightest group around the process counts, whichever level sets it."""
    root = make_root(
        tmp_path,
        proc__meminfo="MemAvailable:    8000000 kB\n",
        proc__self__cgroup="0::/outer/inner\n",
        sys__fs__cgroup__outer__inner__memory="",
    )
    make_root(
        root / "sys/fs/cgroup/outer/inner",
        **{"memory.max": "max\n", "memory.current": "5\n", "cpu.max": "max 100000\n"},
    )
    make_root(
        root / "sys/fs/cgroup/outer",
        **{"memory.max": "3000\n", "memory.current": "1000\n", "cpu.max": "150000 100000\n"},
    )
    found = read_machine(root)
    assert (found.memory_bytes, found.memory_reason) == (2000, "left by the control group's memory.max")
    assert found.quota_cpus == 1.5


def test_a_missing_processor_feature_is_told_before_it_kills() -> None:
    """The fault names the missing feature and the way out."""
    finding = check_processor(machine(), ["avx2", "avx512f"])
    assert finding.severity is Severity.FAULT
    assert finding.words.startswith("llama.cpp was built with avx512f, which this processor lacks")
    assert "scripts/setup" in finding.advice
    assert check_processor(machine(), ["avx2"]).severity is Severity.OK
    assert check_processor(machine(cpu_flags=frozenset()), ["avx2"]).severity is Severity.OK


@pytest.mark.parametrize(
    ("quota", "threads", "advice"),
    [(None, 0, ""), (None, 4, ""), (None, 8, "Give --threads 2"), (1.5, 2, "Give --threads 1"), (3.0, 2, "")],
)
def test_more_threads_than_processor_time_is_a_note(quota: float | None, threads: int, advice: str) -> None:
    """Threads beyond the processors or the quota wait for each other; the advice is a number."""
    finding = check_threads(machine(quota_cpus=quota), threads, n_cores=2)
    assert finding.advice == advice
    assert (finding.severity is Severity.NOTE) == bool(advice)

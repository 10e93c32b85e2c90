"""The number of cores respects a CPU quota, in either version of control groups."""

import os
from pathlib import Path

import pytest

from convert.cores import n_cores, n_physical_cores


@pytest.fixture(autouse=True)
def _eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind this process to eight processors, as far as Python is asked."""
    monkeypatch.setattr("convert.cores._allowed", lambda: set(range(8)))


def machine(root: Path, groups: str, **files: str) -> Path:
    """Write the files of a machine; `__` in a name stands for `/`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


CASES = {
    "no control groups": ("", {}, 8),
    "no quota": ("0::/\n", {"cpu_max": "max 100000\n"}, 8),
    "two processors": ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
    "one and a half": ("0::/\n", {"cpu_max": "150000 100000\n"}, 1),
    "a fifth": ("0::/\n", {"cpu_max": "20000 100000\n"}, 1),
    "more than there are": ("0::/\n", {"cpu_max": "6400000 100000\n"}, 8),
    "the group around it": ("0::/pod/box\n", {"pod__cpu_max": "300000 100000\n", "pod__box__cpu_max": "max 100000"}, 3),
    "version 1": ("4:cpu,cpuacct:/\n", {"cpu__cpu_cfs_quota_us": "250000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 2),
    "version 1 without": (
        "4:cpu,cpuacct:/\n",
        {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000"},
        8,
    ),
    "nonsense": ("0::/\n0\n:::\n", {"cpu_max": "many\n"}, 8),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quota_limits_the_cores(case: str, tmp_path: Path) -> None:
    """The number is that of whole processors in the tightest quota, and at least 1."""
    groups, files, expected = CASES[case]
    root = machine(tmp_path, groups, **files)
    assert n_cores(root) == n_physical_cores(root) == expected


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    """Eight processors that share four cores are four physical cores."""
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert n_physical_cores(tmp_path) == 4
    assert n_cores(tmp_path) == 8


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux binds processes to processors")
def test_this_machine_has_a_core() -> None:
    """The real machine has at least one core and no more than it has processors."""
    assert 1 <= n_physical_cores() <= n_cores() <= (os.cpu_count() or 1) + 8

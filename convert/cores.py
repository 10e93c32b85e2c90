"""How many processor cores this process may use: those it is bound to, within a container's CPU quota.

Sources: Linux Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def n_cores(root: Path = _ROOT) -> int:
    """Return the logical processors this process may use, at least 1; a quota of 1.5 processors counts as 1."""
    return _within_quota(len(_allowed()), root)


def n_physical_cores(root: Path = _ROOT) -> int:
    """Return the cores this process may use, two threads of one core counted once, at least 1."""
    cores = set()
    for cpu in _allowed():
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return _within_quota(len(cores), root)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the smallest CPU quota above this process, in processors; None without one."""
    return min(_quotas(root), default=None)


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def _within_quota(n: int, root: Path) -> int:
    quotas = [int(quota) for quota in _quotas(root)]
    return max(1, min([n, *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield every CPU quota above this process, in processors: its own group's and those of the groups around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        folders = ["sys/fs/cgroup"] if not controllers else []
        if "cpu" in controllers.split(","):
            folders = ["sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}"]
        for folder in folders:
            # Inside a container's own namespace the group is "/"; without one its folder may not be visible.
            for above in (PurePosixPath(group), *PurePosixPath(group).parents):
                quota = _quota(root / folder / str(above).lstrip("/"))
                if quota is not None:
                    yield quota


def _quota(group: Path) -> float | None:
    """Return a group's quota in processors; None if it has none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None

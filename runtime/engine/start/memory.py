"""Whether the host's memory is enough, before anything is loaded: what is needed, what is free, and what shrinks it.

A process that takes more than its control group allows is killed silently (signal 9). Only the host's memory is
judged here; for devices see `runtime.engine.start.offload`.

Sources: proc_meminfo(5); the kernel's cgroup-v2 and cgroup-v1/memory documents.
"""

from __future__ import annotations

import dataclasses
import logging
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.gguf.header import GgufHeader
from convert.gguf.types import GgmlType
from convert.rules.model import ModelSummary
from runtime.config import EngineSettings
from runtime.engine.start.limits import limits_of, need_of
from runtime.errors import ModelLoadError

_LOG = logging.getLogger("gemlane.engine")
_REPACKED: Final = frozenset({GgmlType.Q4_0, GgmlType.Q4_K, GgmlType.IQ4_NL})
"""Matrices of these types are copied into another order on the processor; others stay in the mapped file, which the
system may drop and read again (ggml-cpu/repack.cpp)."""
_PROCESS_BYTES: Final = 120 << 20
"""The engine process with Python, NumPy and llama.cpp, before it loads a model; measured 96 MiB on Linux x86-64."""
_ACTIVATIONS: Final = 12
"""Rows of the model's width that a batch holds at once, beside two of the feed-forward's."""
_MIN_CELLS: Final = 512
_UNLIMITED: Final = 1 << 60
_HOW: Final = "--kv-cells, --n-ctx, --kv-type q8_0, --lanes, --max-lora-rank, --adapter-batching grouped"


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Bytes that this process may still take, and what sets the bound."""

    n_bytes: int
    bound: str


@dataclass(frozen=True, slots=True)
class HostNeed:
    """Bytes of the host's memory that cannot be dropped and read again."""

    weights: int
    cache: int
    lanes: int
    batches: int

    @property
    def total(self) -> int:
        """All of it, the process included."""
        return self.weights + self.cache + self.lanes + self.batches + _PROCESS_BYTES

    def __str__(self) -> str:
        parts = {"weights": self.weights, "cache": self.cache, "lanes": self.lanes, "batches": self.batches}
        return ", ".join(f"{name} {_mb(n_bytes)}" for name, n_bytes in parts.items())


def fit_memory(
    settings: EngineSettings, header: GgufHeader, summary: ModelSummary, free: FreeMemory | None
) -> EngineSettings:
    """The settings, with a smaller cache if the default one has no room.

    Raises:
        ModelLoadError: too little memory, however small the cache; the message has the numbers and the way out.
    """
    if free is None:
        return settings
    need = host_need(settings, header, summary)
    if need.total <= free.n_bytes:
        return settings
    n_cells = limits_of(settings, summary.hyperparameters.n_ctx).n_kv_cells
    n_fitting = int(n_cells * (free.n_bytes - need.total + need.cache) / max(need.cache, 1)) // _MIN_CELLS * _MIN_CELLS
    if settings.kv_cells == 0 and n_fitting >= _MIN_CELLS:
        _LOG.warning(
            "%s is free (%s) and %s would be needed; the cache is made for %d tokens instead of %d (--kv-cells)",
            _mb(free.n_bytes),
            free.bound,
            _mb(need.total),
            n_fitting,
            n_cells,
        )
        return dataclasses.replace(settings, kv_cells=n_fitting)
    raise ModelLoadError(
        f"not enough memory: {_mb(need.total)} needed ({need}), {_mb(free.n_bytes)} free ({free.bound}); "
        f"these shrink it: {_HOW}, or a model of a smaller type"
    )


def host_need(settings: EngineSettings, header: GgufHeader, summary: ModelSummary) -> HostNeed:
    """What a start on the processor takes."""
    sizes, need = summary.hyperparameters, need_of(settings, header, summary)
    limits = limits_of(settings, sizes.n_ctx)
    matrices = (tensor for tensor in header.tensors.values() if tensor.type in _REPACKED)
    n_values = limits.n_batch * (_ACTIVATIONS * sizes.n_embd + 2 * sizes.n_ff) + settings.parallel * sizes.n_vocab
    return HostNeed(sum(matrix.size_bytes for matrix in matrices), need.cache, need.lanes, 4 * n_values)


def free_memory(root: Path = Path("/")) -> FreeMemory | None:
    """The tightest of the machine's free memory, the control groups' and the address space; None if none is known."""
    found = [*_machine(root / "proc"), *_groups(root)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(FreeMemory(max(0, limit - _address_space()), "the limit of the address space, ulimit -v"))
    return min(found, key=lambda free: free.n_bytes, default=None)


def _address_space() -> int:
    """Bytes of address space that this process has, beyond `_PROCESS_BYTES`, which every start is counted with."""
    n_pages = next(iter(_lines(Path("/proc/self/statm"))), "0").split()[0]
    return max(0, int(n_pages) * resource.getpagesize() - _PROCESS_BYTES)


def _machine(proc: Path) -> list[FreeMemory]:
    for line in _lines(proc / "meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return [FreeMemory(int(value.split()[0]) << 10, "the machine's available memory")]
    return []


def _groups(root: Path) -> list[FreeMemory]:
    """The process's control group and all above it: what each may still take, file pages counted as free."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, limit_name, use_name = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            limit_name, use_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, use = _number(folder / limit_name), _number(folder / use_name)
            if limit is not None and use is not None and limit < _UNLIMITED:
                found.append(FreeMemory(max(0, limit - use + _file_pages(folder)), "the limit of its control group"))
            if folder == base:
                break
    return found


def _file_pages(folder: Path) -> int:
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in ("file", "total_cache"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"

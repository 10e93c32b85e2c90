"""Estimates what a conversion will cost before it starts: bytes, memory, time. Pure."""

from collections import Counter
from types import MappingProxyType
from typing import Final

from convert.gguf.types import GgmlType
from convert.gguf.writer import FilePlan
from convert.tensors.encoder import CHUNK_VALUES

# Million values a second on one core of an EPYC with AVX-512 [measured]; other machines differ by a factor of two.
_RATES: Final = MappingProxyType(
    {
        GgmlType.Q8_0: 190, GgmlType.Q4_0: 300, GgmlType.Q4_1: 300, GgmlType.Q5_0: 250, GgmlType.Q5_1: 250,
        GgmlType.Q6_K: 22, GgmlType.Q5_K: 17, GgmlType.Q4_K: 14, GgmlType.Q3_K: 50, GgmlType.Q2_K: 11,
        GgmlType.IQ4_XS: 5, GgmlType.IQ4_NL: 3,
    }
)  # fmt: skip
_FLOAT_RATE: Final = 250
_PROGRAM_BYTES: Final = 110_000_000  # Python, numpy and a vocabulary of 256,000 pieces [measured]


def estimate(plan: FilePlan, n_threads: int) -> list[str]:
    """Return lines that tell the size, the types, and about how much memory and time it takes."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    work_s = 0.0
    for tensor in plan.tensors:
        counts[tensor.type.name] += 1
        sizes[tensor.type.name] += tensor.size_bytes
        work_s += tensor.n_values / 1e6 / _RATES.get(tensor.type, _FLOAT_RATE)
    memory_bytes = _PROGRAM_BYTES + (n_threads + 1) * 2 * 4 * CHUNK_VALUES  # a source chunk and its float32 each
    lines = [f"{name:<7}{counts[name]:>6} tensors{sizes[name] / 1e6:>12,.1f} MB" for name in sorted(counts)]
    lines.append(f"total  {sum(counts.values()):>6} tensors{plan.tensor_bytes / 1e6:>12,.1f} MB")
    lines.append(
        f"memory about {memory_bytes / 1e6:.0f} MB, time about {max(work_s / n_threads, 0.1):.1f} s and the disk's"
    )
    return lines

"""What a base model, its cache and its lanes take, against what there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from convert.gguf.header import GgufHeader
from convert.rules.model import ModelSummary
from runtime.config import EngineSettings
from runtime.doctor.finding import Finding, fault, note, ok
from runtime.doctor.machine import Machine
from runtime.engine.start.limits import limits_of
from runtime.llama.lanes.template import lora_shapes

_VALUE_BYTES: Final = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
_COMFORT: Final = 0.9
"""Share of the free memory beyond which other programs get too little."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by what takes them."""

    weights: int
    cache: int
    lanes: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.lanes


def need_of(settings: EngineSettings, header: GgufHeader, summary: ModelSummary) -> MemoryNeed:
    """What the settings make of a model."""
    sizes = summary.hyperparameters
    n_cells = limits_of(settings, sizes.n_ctx).n_kv_cells
    n_kv_values = 2 * sizes.n_layers * n_cells * sizes.n_kv_heads * sizes.head_dim
    n_lane_values = 0
    if settings.adapter_batching != "grouped":
        n_per_rank = sum(n_in + n_out for n_in, n_out in lora_shapes(header).values())
        n_lane_values = n_per_rank * settings.max_lora_rank * (settings.lanes + 1)
    return MemoryNeed(
        header.size_bytes,
        round(n_kv_values * _VALUE_BYTES[settings.kv_type]),
        round(n_lane_values * _VALUE_BYTES[settings.lane_type]),
    )


def check_memory(settings: EngineSettings, header: GgufHeader, summary: ModelSummary, machine: Machine) -> Finding:
    """Whether weights, cache and lanes fit into the memory of this machine."""
    need, free = need_of(settings, header, summary), machine.memory_bytes
    words = (
        f"{_gb(need.weights)} weights + {_gb(need.cache)} cache + {_gb(need.lanes)} lanes = {_gb(need.total)}, "
        f"of {_gb(free)} {machine.memory_reason}"
    )
    if need.total <= _COMFORT * free:
        return ok("memory", words)
    savings = [
        advice
        for advice, helps in (
            ("--kv-type q8_0 halves the cache", settings.kv_type != "q8_0"),
            ("--kv-cells and --n-ctx shrink it", need.cache > need.lanes),
            ("--lanes and --max-lora-rank shrink the lanes", need.lanes > _COMFORT * need.cache),
            ("a smaller --type of the model shrinks the weights", need.weights > free // 2),
        )
        if helps
    ]
    # Weights are mapped: pages that do not fit are read again from the disk at every step.
    severity = fault if need.total - need.weights > free else note
    return severity("memory", words, "; ".join(savings))


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"

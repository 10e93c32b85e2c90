"""What a base model, its cache and its lanes take, against what there is."""

from __future__ import annotations

from typing import Final

from convert.gguf.header import GgufHeader
from convert.rules.model import ModelSummary
from runtime.config import EngineSettings
from runtime.doctor.finding import Finding, fault, note, ok
from runtime.doctor.machine import Machine
from runtime.engine.start.limits import need_of

_COMFORT: Final = 0.9
"""Share of the free memory beyond which other programs get too little."""


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

"""What settings and model give together: the limits of an engine. Pure arithmetic; it loads no llama.cpp."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from convert.gguf.header import GgufHeader
from convert.rules.model import ModelSummary
from runtime.config import EngineSettings
from runtime.engine.scheduler import EngineLimits
from runtime.llama.lanes.template import lora_shapes
from runtime.llama.limits import MAX_SCORED

_LOG = logging.getLogger("gemlane.engine")
_VALUE_BYTES: Final = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
"""Bytes of one value by number format, scales of blocks included."""
# Without --n-ctx and --kv-cells: what a 7B model's cache may take on a small machine (458 KB a token in F16).
_DEFAULT_N_CTX, _DEFAULT_KV_CELLS = 4096, 8192
# Tokens of one batch: llama.cpp's own default, where wider batches stop being faster per token.
_N_BATCH = 512


def limits_of(settings: EngineSettings, n_ctx_train: int) -> EngineLimits:
    """What settings and model give together; no request can be longer than the model was trained for."""
    n_ctx = min(settings.n_ctx or _DEFAULT_N_CTX, n_ctx_train)
    if settings.n_ctx > n_ctx:
        _LOG.warning("--n-ctx %d is more than the model's %d; using %d", settings.n_ctx, n_ctx_train, n_ctx)
    n_kv_cells = settings.kv_cells or max(n_ctx, min(settings.parallel * n_ctx, _DEFAULT_KV_CELLS))
    return EngineLimits(
        n_ctx=min(n_ctx, n_kv_cells),
        n_kv_cells=n_kv_cells,
        n_parallel=settings.parallel,
        n_batch=max(_N_BATCH, settings.parallel),
        step_budget_ms=settings.step_budget_ms,
        n_scored=MAX_SCORED,
        n_draft_max=settings.draft_max,
    )


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

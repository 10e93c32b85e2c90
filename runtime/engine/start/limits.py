"""What settings and model give together: the limits of an engine. Pure arithmetic; it loads no llama.cpp."""

from __future__ import annotations

import logging

from runtime.config import EngineSettings
from runtime.engine.scheduler import EngineLimits

_LOG = logging.getLogger("gemlane.engine")
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
    )

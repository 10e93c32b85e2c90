"""From settings to a running engine: the file is checked, the model loaded, the cache sized."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.config import EngineSettings
from runtime.engine.doorway import check_model_file
from runtime.engine.grouped import GroupedAdapters
from runtime.engine.loop import Engine
from runtime.engine.scheduler import Limits
from runtime.llama.context import Context, ContextShape
from runtime.llama.library import Library, n_physical_cores
from runtime.llama.model import Model
from runtime.messages import ModelInfo, Ready

_LOG = logging.getLogger("gemlane.engine")
# Without --n-ctx and --kv-cells: what a 7B model's cache may take on a small machine (458 KB a token in F16).
_DEFAULT_N_CTX, _DEFAULT_KV_CELLS = 4096, 8192
# Tokens of one batch: llama.cpp's own default, where wider batches stop being faster per token.
_N_BATCH = 512


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the settings and the model give together."""

    n_ctx: int
    n_kv_cells: int


def sizes(settings: EngineSettings, n_ctx_train: int) -> Sizes:
    """Context window and cache; a request can never be longer than the model was trained for or the cache holds."""
    n_ctx = min(settings.n_ctx or _DEFAULT_N_CTX, n_ctx_train)
    if settings.n_ctx > n_ctx:
        _LOG.warning("--n-ctx %d is more than the model's %d; using %d", settings.n_ctx, n_ctx_train, n_ctx)
    n_kv_cells = settings.kv_cells or max(n_ctx, min(settings.parallel * n_ctx, _DEFAULT_KV_CELLS))
    return Sizes(min(n_ctx, n_kv_cells), n_kv_cells)


def start(library: Library, settings: EngineSettings, on_progress: Callable[[float], bool]) -> tuple[Engine, Ready]:
    """Load the model and make the engine.

    Raises:
        ModelLoadError: the model cannot be served; the message says why and what to do.
    """
    path = Path(settings.model)
    header = check_model_file(path)
    n_gpu_layers = _n_gpu_layers(library, settings)
    model = Model(library, path, n_gpu_layers=n_gpu_layers, on_progress=on_progress)
    size = sizes(settings, model.n_ctx_train)
    limits = Limits(settings.parallel, size.n_kv_cells, max(_N_BATCH, settings.parallel))
    shape = ContextShape(
        n_kv_cells=size.n_kv_cells,
        n_batch=limits.n_batch,
        n_sequences=settings.parallel,
        n_threads=settings.threads or n_physical_cores(),
        kv_type=settings.kv_type,
    )
    context = Context(model, shape)
    adapters = GroupedAdapters(model, context, header)
    engine = Engine(model, context, adapters, limits, n_ctx=size.n_ctx, step_budget_ms=settings.step_budget_ms)
    info = ModelInfo(
        name=model.description,
        size_bytes=model.size_bytes,
        n_params=model.n_params,
        n_layers=model.n_layers,
        n_ctx=size.n_ctx,
        n_kv_cells=size.n_kv_cells,
        n_parallel=settings.parallel,
        device="gpu" if n_gpu_layers else "cpu",
    )
    return engine, Ready(info, adapters.mode, "mixed batches are not built yet")


def _n_gpu_layers(library: Library, settings: EngineSettings) -> int:
    if settings.gpu_layers != "auto":
        return int(settings.gpu_layers)
    return -1 if library.has_gpu else 0

"""From settings to a running engine: the file is checked, the model loaded, the cache sized, the lanes proven."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from convert.cores import n_physical_cores
from convert.gguf.header import GgufHeader
from runtime.config import EngineSettings
from runtime.engine.adapters.grouped import GroupedAdapters
from runtime.engine.adapters.mixed import MixedAdapters
from runtime.engine.adapters.protocol import Adapters
from runtime.engine.cache.disk import PrefixStore, identity_of
from runtime.engine.compiling import Compiling
from runtime.engine.engine import LlamaEngine
from runtime.engine.scheduler import EngineLimits
from runtime.engine.start import offload
from runtime.engine.start.limits import limits_of, need_of
from runtime.engine.start.model_file import check_model_file
from runtime.engine.start.selfcheck import N_PROBES, N_SEQUENCES, SelfCheckError, prove_lanes
from runtime.errors import DecodeError, InvalidAdapter, ModelLoadError
from runtime.llama.context import Context, ContextShape
from runtime.llama.grammar import GrammarCompiler
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.template import lora_shapes
from runtime.llama.library import COMMIT, VERSION, Library, gpus
from runtime.llama.model import Model
from runtime.messages import ModelInfo, Ready

_LOG = logging.getLogger("gemlane.engine")


def start(
    library: Library,
    settings: EngineSettings,
    *,
    on_progress: Callable[[float], bool],
    on_prepared: Callable[[], None],
) -> tuple[LlamaEngine, Ready]:
    """Load the model and make the engine.

    Args:
        library: llama.cpp, started.
        settings: the user's.
        on_progress: told how much of the model is loaded; loading stops when it answers False.
        on_prepared: called from another thread when a step may find something to do again.

    Raises:
        ModelLoadError: the model cannot be served; the message says why and what to do.
    """
    path = Path(settings.model)
    header, summary = check_model_file(path)
    for warning in summary.warnings:
        _LOG.warning("%s: %s", path.name, warning)
    gpu = next(iter(gpus()), None)
    n_gpu_layers = offload.n_gpu_layers(settings, header, gpu.free_bytes if gpu else 0)
    model = Model(library, path, n_gpu_layers=n_gpu_layers, on_progress=on_progress)
    limits = limits_of(settings, model.n_ctx_train)
    context, adapters, reason = _make_context(model, header, settings, limits, on_prepared)
    engine = LlamaEngine(model, context, adapters, limits, Compiling(GrammarCompiler(model), on_prepared))
    if settings.prefix_dir:
        _keep_prefixes(engine, settings, header)
    need = need_of(settings, header, summary)
    info = ModelInfo(
        name=model.description,
        size_bytes=model.size_bytes,
        n_params=model.n_params,
        n_layers=model.n_layers,
        n_ctx=limits.n_ctx,
        n_kv_cells=limits.n_kv_cells,
        n_parallel=settings.parallel,
        device=f"{gpu.name}, {n_gpu_layers} layers" if gpu and n_gpu_layers else "CPU",
        warnings=summary.warnings,
        cache_bytes=need.cache,
        lanes_bytes=need.lanes if adapters.mode == "mixed" else 0,
    )
    _LOG.debug("adapter batching is %s: %s", adapters.mode, reason)
    return engine, Ready(info, adapters.mode, reason, COMMIT)


def _keep_prefixes(engine: LlamaEngine, settings: EngineSettings, header: GgufHeader) -> None:
    identity = identity_of(Path(settings.model), header.data_offset, settings.kv_type, VERSION)
    try:
        store = PrefixStore(Path(settings.prefix_dir), identity)
    except OSError as error:
        raise ModelLoadError(f"--prefix-dir {settings.prefix_dir} cannot be used: {error.strerror}") from error
    _LOG.info("%d prefixes restored from %s", engine.keep_prefixes_in(store), settings.prefix_dir)


def _make_context(
    model: Model, header: GgufHeader, settings: EngineSettings, limits: EngineLimits, on_prepared: Callable[[], None]
) -> tuple[Context, Adapters, str]:
    """The context, how batches get their adapters, and why so."""
    shape = ContextShape(
        n_kv_cells=limits.n_kv_cells,
        n_batch=limits.n_batch,
        # The self-check mixes more sequences than a server of one or two would.
        n_sequences=max(settings.parallel, N_SEQUENCES),
        n_threads=settings.threads or n_physical_cores(),
        kv_type=settings.kv_type,
    )
    reason = "asked for"
    if settings.adapter_batching != "grouped":
        n_lanes = max(settings.lanes, N_PROBES)
        bank_shape = BankShape(n_lanes, settings.max_lora_rank, settings.lane_type, limits.n_batch)
        try:
            laned, reason = _make_lanes(model, header, shape, bank_shape)
        except (ModelLoadError, SelfCheckError, DecodeError, InvalidAdapter) as error:
            if settings.adapter_batching == "mixed":
                raise ModelLoadError(f"mixed batches are not possible here: {error}") from error
            reason = f"mixed batches are not possible here: {error}"
            _LOG.warning("%s; falling back to one adapter a batch", reason)
        else:
            return laned.context, MixedAdapters(laned, bank_shape, header, on_prepared), reason
    context = Context(model, shape)
    return context, GroupedAdapters(model, context, header, settings.lanes), reason


def _make_lanes(
    model: Model, header: GgufHeader, shape: ContextShape, bank_shape: BankShape
) -> tuple[LanedContext, str]:
    """A context with proven lanes, and what was proven."""
    laned = LanedContext(model, shape, lora_shapes(header), bank_shape)
    try:
        verdict = prove_lanes(model, laned, bank_shape, header)
    except (SelfCheckError, DecodeError, InvalidAdapter):
        laned.free()
        raise
    return laned, f"the self-check found lanes within {100 * verdict.worst:.1f} % of llama.cpp's own adapters"

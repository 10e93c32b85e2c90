"""From settings to a running engine: the file is checked, the model placed and loaded, the lanes proven."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from convert.cores import n_physical_cores
from convert.gguf.header import GgufHeader
from convert.rules.model import ModelSummary
from runtime.config import EngineSettings
from runtime.engine.adapters.grouped import GroupedAdapters
from runtime.engine.adapters.mixed import MixedAdapters
from runtime.engine.adapters.protocol import Adapters
from runtime.engine.cache.disk import PrefixStore, identity_of
from runtime.engine.compiling import Compiling
from runtime.engine.engine import LlamaEngine
from runtime.engine.scheduler import EngineLimits
from runtime.engine.start.limits import limits_of, need_of
from runtime.engine.start.memory import fit_memory, free_memory
from runtime.engine.start.model_file import check_model_file
from runtime.engine.start.offload import place, with_fewer_layers
from runtime.engine.start.proof import Proof, ProofRecords, key_of
from runtime.engine.start.prove import ProofTask, prove
from runtime.engine.start.provisional import ProvisionalAdapters
from runtime.engine.start.selfcheck import SelfCheckError, Verdict, prove_lanes
from runtime.engine.start.trials import N_PROBES, N_SEQUENCES, WHOLE_MODEL
from runtime.errors import ConfigError, DecodeError, InvalidAdapter, ModelLoadError
from runtime.llama.context import MAX_SEQUENCE_IDS, Context, ContextShape
from runtime.llama.devices import Placement, add_rpc_servers, backend_names, choose, supports_devices
from runtime.llama.grammar import GrammarCompiler
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.template import lora_shapes
from runtime.llama.library import COMMIT, VERSION, Library
from runtime.llama.model import Model
from runtime.messages import LANES_WAITING, ModelInfo, Ready

_LOG = logging.getLogger("gemlane.engine")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the engine tells its process."""

    on_progress: Callable[[float], bool] = lambda _fraction: True
    """How much of the model is loaded, 0 to 1; loading stops when it answers False."""
    on_prepared: Callable[[], None] = lambda: None
    """A step may find something to do again. Called from other threads."""
    on_batching: Callable[[str, str], None] = lambda _mode, _reason: None
    """How adapters share batches has changed: mode and reason."""


class _LanesRefusedError(ModelLoadError):
    """Mixed batches were asked for, and lanes are wrong here; with fewer layers on devices nothing is gained."""


@dataclass(frozen=True, slots=True)
class _Start:
    """All that the parts of a start need."""

    library: Library
    settings: EngineSettings
    header: GgufHeader
    limits: EngineLimits
    hooks: Hooks
    state_dir: Path | None


def start(
    library: Library,
    settings: EngineSettings,
    hooks: Hooks,
    *,
    state_dir: Path | None = None,
) -> tuple[LlamaEngine, Ready]:
    """Load the model and make the engine.

    Args:
        library: llama.cpp, started.
        settings: the user's.
        hooks: what to call.
        state_dir: where proofs are remembered; None: nowhere.

    Raises:
        ModelLoadError: the model cannot be served; the message says why and what to do.
    """
    path = Path(settings.model)
    header, summary = check_model_file(path)
    for warning in summary.warnings:
        _LOG.warning("%s: %s", path.name, warning)
    limits = limits_of(settings, summary.hyperparameters.n_ctx)
    beginning = _Start(library, settings, header, limits, hooks, state_dir)
    placement = _place(beginning)
    beginning = beginning if placement.n_layers else _fitted(beginning, summary)
    settings, limits = beginning.settings, beginning.limits
    model, context, adapters, reason, placement = _load(beginning, placement)
    engine = LlamaEngine(model, context, adapters, limits, Compiling(GrammarCompiler(model), hooks.on_prepared))
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
        device=str(placement),
        warnings=summary.warnings,
        cache_bytes=need.cache,
        lanes_bytes=need.lanes if adapters.mode == "mixed" else 0,
        backends=tuple(backend_names()),
        n_device_layers=placement.n_layers,
    )
    _LOG.debug("adapter batching is %s: %s", adapters.mode, reason)
    return engine, Ready(info, adapters.mode, reason, COMMIT)


def _place(beginning: _Start) -> Placement:
    """Where the layers go, on the devices that this machine has.

    Raises:
        ModelLoadError: a device that is asked for is not there.
    """
    settings, has_backend = beginning.settings, supports_devices()
    try:
        add_rpc_servers(settings.rpc)
        return place(settings, beginning.header, beginning.limits, choose(settings.device), has_backend=has_backend)
    except ConfigError as error:
        raise ModelLoadError(str(error)) from error


def _fitted(beginning: _Start, summary: ModelSummary) -> _Start:
    """The start as it fits into the host's memory; raises as `fit_memory`."""
    settings = fit_memory(beginning.settings, beginning.header, summary, free_memory())
    return replace(beginning, settings=settings, limits=limits_of(settings, summary.hyperparameters.n_ctx))


def _load(beginning: _Start, placement: Placement) -> tuple[Model, Context, Adapters, str, Placement]:
    """Load the model and make its context; with fewer layers on devices as long as those refuse."""
    is_wanted = True

    def progress(fraction: float) -> bool:
        nonlocal is_wanted
        is_wanted = beginning.hooks.on_progress(fraction)
        return is_wanted

    while True:
        try:
            with contextlib.ExitStack() as undo:
                path = Path(beginning.settings.model)
                model = Model(beginning.library, path, placement=placement, on_progress=progress)
                undo.callback(model.free)
                context, adapters, reason = _make_context(beginning, model, placement)
                undo.pop_all()
        except _LanesRefusedError:
            raise
        except ModelLoadError as error:
            if not placement.n_layers or not is_wanted:
                raise
            fewer = with_fewer_layers(placement)
            _LOG.warning("%s; trying %d layers on devices instead of %d", error, fewer.n_layers, placement.n_layers)
            placement = fewer
        else:
            return model, context, adapters, reason, placement


def _keep_prefixes(engine: LlamaEngine, settings: EngineSettings, header: GgufHeader) -> None:
    identity = identity_of(Path(settings.model), header.data_offset, settings.kv_type, VERSION)
    try:
        store = PrefixStore(Path(settings.prefix_dir), identity)
    except OSError as error:
        raise ModelLoadError(f"--prefix-dir {settings.prefix_dir} cannot be used: {error.strerror}") from error
    _LOG.info("%d prefixes restored from %s", engine.keep_prefixes_in(store), settings.prefix_dir)


def _make_context(beginning: _Start, model: Model, placement: Placement) -> tuple[Context, Adapters, str]:
    """The context, how batches get their adapters, and why so."""
    settings, limits = beginning.settings, beginning.limits
    shape = ContextShape(
        n_kv_cells=limits.n_kv_cells,
        n_batch=limits.n_batch,
        # One more than run at once, for filler tokens. The self-check mixes more than a server of one or two would.
        n_sequences=max(min(settings.parallel + 1, MAX_SEQUENCE_IDS), N_SEQUENCES),
        n_threads=settings.threads or n_physical_cores(),
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attn,
        is_kv_on_device=settings.kv_offload == "on",
    )
    reason = "asked for"
    if settings.adapter_batching != "grouped":
        try:
            return _make_lanes(beginning, model, placement, shape)
        except (ModelLoadError, SelfCheckError, DecodeError, InvalidAdapter) as error:
            reason = f"mixed batches are not possible here: {error}"
            if settings.adapter_batching == "mixed":
                refused = ModelLoadError if isinstance(error, ModelLoadError) else _LanesRefusedError
                raise refused(reason) from error
            _LOG.warning("%s; falling back to one adapter a batch", reason)
    context = Context(model, shape)
    return context, GroupedAdapters(model, context, beginning.header, settings.lanes), reason


def _make_lanes(
    beginning: _Start, model: Model, placement: Placement, shape: ContextShape
) -> tuple[Context, Adapters, str]:
    """A context with lanes: proven ones, or such that are about to be proven."""
    settings, header, hooks = beginning.settings, beginning.header, beginning.hooks
    n_lanes = max(settings.lanes, N_PROBES)
    bank_shape = BankShape(n_lanes, settings.max_lora_rank, settings.lane_type, beginning.limits.n_batch)
    laned = LanedContext(model, shape, lora_shapes(header), bank_shape)
    with contextlib.ExitStack() as undo:
        undo.callback(laned.free)
        trials = (WHOLE_MODEL,)
        check = functools.partial(prove_lanes, model, laned, bank_shape, header, trials)
        proof = _proof_of(beginning, model, placement, check)
        mixed = MixedAdapters(laned, bank_shape, header, hooks.on_prepared)
        undo.pop_all()
    if isinstance(proof, Verdict):
        return laned.context, mixed, str(proof)
    laned.use_native([])
    grouped = GroupedAdapters(model, laned.context, header, settings.lanes)
    return laned.context, ProvisionalAdapters(grouped, mixed, laned, proof, hooks.on_batching), LANES_WAITING


def _proof_of(
    beginning: _Start, model: Model, placement: Placement, prove_whole_model: Callable[[], Verdict]
) -> Verdict | Proof:
    """What is known of the lanes, or the proof that is still to begin.

    Raises:
        SelfCheckError: the lanes are wrong.
        DecodeError: a batch in lanes failed.
    """
    settings, hooks, state_dir = beginning.settings, beginning.hooks, beginning.state_dir
    folder = str(state_dir) if state_dir and state_dir.is_dir() else ""
    task = ProofTask(settings, beginning.limits.n_batch, placement.n_layers, model.n_layers, folder)
    identity = identity_of(Path(settings.model), beginning.header.data_offset, settings.kv_type, VERSION)
    records, key = ProofRecords(state_dir), key_of(task, identity, placement)
    if known := records.find(key):
        return known
    if placement.n_layers:
        prove_whole_model()
    if placement.is_remote:
        # An RPC server serves one process at a time, and this one is connected.
        verdict = prove(beginning.library, task)
        records.add(key, verdict)
        return verdict
    must_wait = settings.adapter_batching == "mixed"
    proof = Proof(task, lambda verdict: records.add(key, verdict), (lambda: None) if must_wait else hooks.on_prepared)
    if not must_wait:
        return proof
    outcome = proof.wait(lambda: hooks.on_progress(1.0))
    if outcome.verdict is None:
        raise SelfCheckError(outcome.reason)
    return outcome.verdict

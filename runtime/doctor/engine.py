"""The engine itself: the model is loaded, the lanes prove themselves, and a few tokens are made."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from convert.gguf.header import GgufHeader
from runtime.config import EngineSettings
from runtime.doctor.finding import Finding, fault, note, ok
from runtime.engines.supervisor import ChildEngine
from runtime.errors import GemlaneError, ModelLoadError
from runtime.generation import GenerationRequest, Sampling
from runtime.llama.lanes.template import lora_shapes, write_probe
from runtime.messages import LANES_PROVING, LANES_WAITING, Finished, Ready, Started
from runtime.prompt.gemma import Message, SystemRole, render

_N_TOKENS = 16
_PROOF_TIMEOUT_S = 600.0
_POLL_S = 0.1


def check_engine(
    settings: EngineSettings, header: GgufHeader, on_loading: Callable[[float], None]
) -> Iterator[Finding]:
    """Load the model as the server would, and say how it went; ``header`` is the model's."""
    try:
        ready, words = asyncio.run(_try(settings, header, on_loading))
    except ModelLoadError as error:
        yield fault("engine", str(error))
        return
    except GemlaneError as error:
        yield fault("engine", f"the model is loaded and does not answer: {error}")
        return
    yield ok("engine", words)
    if ready.adapter_batching == "mixed":
        yield ok("lanes", ready.batching_reason)
    elif settings.adapter_batching == "grouped":
        yield note("lanes", "off: --adapter-batching grouped", "auto mixes adapters in one batch where the lanes hold")
    else:
        yield note(
            "lanes",
            ready.batching_reason,
            "The server works, one adapter a batch; please report this line with the output of gemlane doctor --json",
        )


async def _try(settings: EngineSettings, header: GgufHeader, on_loading: Callable[[float], None]) -> tuple[Ready, str]:
    engine = ChildEngine(settings, max_in_flight=1, on_loading=on_loading)
    began = time.monotonic()
    try:
        ready = await engine.start()
        loaded_s = time.monotonic() - began
        prompt = render((Message("user", "Count from one to twenty."),), SystemRole.FOLD)
        request = GenerationRequest("doctor", prompt, _N_TOKENS, Sampling(temperature=0))
        first = last = time.monotonic()
        n_tokens = 0
        async with engine.generate(request) as events:
            async for event in events:
                last = time.monotonic()
                if isinstance(event, Started):
                    first = last
                elif isinstance(event, Finished):
                    n_tokens = event.usage.n_completion_tokens
        ready = await _prove(engine, ready, header)
    finally:
        await engine.stop()
    speed = f", {n_tokens} tokens at {n_tokens / max(last - first, 1e-3):.1f} a second"
    return ready, f"{ready.model.name} on {ready.model.device}, loaded in {loaded_s:.1f} s{speed}"


async def _prove(engine: ChildEngine, ready: Ready, header: GgufHeader) -> Ready:
    """Let the lanes prove themselves, which they do for the first adapter: one made up for this model."""
    if ready.batching_reason not in (LANES_WAITING, LANES_PROVING):
        return ready
    with tempfile.TemporaryDirectory(prefix="gemlane-doctor-") as folder:
        path = Path(folder) / "probe.gguf"
        write_probe(path, lora_shapes(header), seed=0)
        await engine.add_adapter(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        deadline = time.monotonic() + _PROOF_TIMEOUT_S
        while ready.batching_reason in (LANES_WAITING, LANES_PROVING) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            ready = engine.ready or ready
    return ready

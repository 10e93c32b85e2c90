"""What a step costs beside `llama_decode`: one engine in this process, its events written to a pipe."""

import contextlib
import hashlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import llama_cpp.llama_cpp as native
import numpy as np

from runtime.config import EngineSettings
from runtime.engine.engine import LlamaEngine
from runtime.engine.start.startup import Hooks, start
from runtime.generation import Blend, BlendMember, GenerationRequest, Prompt, Sampling, Segment
from runtime.llama.library import Library
from runtime.messages import AdapterAdded
from runtime.pipe import encode
from scripts.bench.asks import random_prompt
from scripts.bench.plan import N_CLIENTS, Plan, tell
from scripts.bench.report import Claim, Result, Series

COUNTS = (1, 8, 32, 64)
N_STEPS = 16  # measured for one value
N_PROMPT_TOKENS = 8
SAMPLINGS = {"greedy": Sampling(temperature=0), "drawn": Sampling(temperature=0.6, seed=1)}
MAX_SHARE = 0.02  # of llama_decode's time
MAX_TINY_MS = 0.5  # of the tiny shape with up to 8 sequences


@dataclass(slots=True)
class Clock:
    """The seconds spent in `llama_decode`, its computation included."""

    decode_s: float = 0.0


@contextlib.contextmanager
def timed_decode() -> Iterator[Clock]:
    """Counts the time of every `llama_decode` until the block ends; devices compute on after its return."""
    clock, decode = Clock(), native.llama_decode

    def timed(*arguments: Any) -> Any:
        start_s = time.perf_counter()
        status = decode(*arguments)
        native.llama_synchronize(arguments[0])
        clock.decode_s += time.perf_counter() - start_s
        return status

    with mock.patch.object(native, "llama_decode", timed):
        yield clock


@contextlib.contextmanager
def loaded(plan: Plan) -> Iterator[tuple[LlamaEngine, list[Blend]]]:
    """An engine for as many sequences as are measured, and its adapters, until the block ends."""
    setup = plan.setup(N_CLIENTS)
    settings = EngineSettings(
        model=str(setup.model),
        threads=setup.n_threads,
        parallel=max(COUNTS),
        kv_cells=setup.n_cells,
        adapter_batching="mixed",
    )
    with tempfile.TemporaryDirectory() as state:
        engine, _ = start(Library(), settings, Hooks(), state_dir=Path(state))
        blends = []
        for path in setup.adapter_files:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert isinstance(engine.add_adapter(digest, path), AdapterAdded)
            blends.append(Blend((BlendMember(digest, 1.0),)))
        try:
            yield engine, blends
        finally:
            engine.close()


def begin(engine: LlamaEngine, blends: list[Blend], n: int, sampling: Sampling) -> list[str]:
    """Brings `n` sequences, each under one of the adapters, to the end of their prompts; returns their ids."""
    generator = np.random.default_rng(n)
    ids = [f"chatcmpl-{n}-{number:027}" for number in range(n)]
    for number, request_id in enumerate(ids):
        prompt = Prompt((Segment(random_prompt(generator, N_PROMPT_TOKENS), has_control_tokens=False),))
        blend = blends[number % len(blends)]
        engine.submit(GenerationRequest(request_id, prompt, 2 * N_STEPS + n, sampling, blend, n_draft_max=0))
    n_decoding = 0
    while n_decoding < n:
        n_decoding += sum(type(event).__name__ == "Started" for event in engine.step())
        if engine.is_blocked:
            time.sleep(0.01)  # a lane is being filled
    return ids


def measure(engine: LlamaEngine, pipe: IO[bytes], clock: Clock) -> tuple[float, float]:
    """Runs steps; returns the median of what one costs beside `llama_decode`, and of `llama_decode`, in ms."""
    besides, decodes = [], []
    for _ in range(N_STEPS):
        clock.decode_s, start_s = 0.0, time.perf_counter()
        pipe.write(b"".join(map(encode, engine.step())))
        pipe.flush()
        besides.append(1e3 * (time.perf_counter() - start_s - clock.decode_s))
        decodes.append(1e3 * clock.decode_s)
    return float(np.median(besides)), float(np.median(decodes))


def measure_all(plan: Plan) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """What `measure` returns, by kind of sampling and number of sequences, for each repeat."""
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        clock = stack.enter_context(timed_decode())
        reader = stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
        engine, blends = stack.enter_context(loaded(plan))
        assert reader.stdin is not None
        for _ in range(plan.repeats):
            for n in COUNTS:
                for name, sampling in SAMPLINGS.items():
                    ids = begin(engine, blends, n, sampling)
                    beside_ms, decode_ms = measure(engine, reader.stdin, clock)
                    measured.setdefault((name, n), []).append((beside_ms, decode_ms))
                    tell(f"{name}, {n} sequences: {beside_ms:.2f} ms beside {decode_ms:.1f} ms of llama_decode")
                    for request_id in ids:
                        engine.cancel(request_id)
                    engine.step()
    return measured


async def step(plan: Plan) -> Result:
    """Each number of sequences, greedy and drawn, in turns."""
    return conclude(measure_all(plan), is_tiny=plan.shape == "tiny")


def conclude(measured: dict[tuple[str, int], list[tuple[float, float]]], *, is_tiny: bool) -> Result:
    """The series and claims of all rounds; the bound of the tiny shape is in milliseconds."""
    besides = {
        key: Series(f"{key[0]}, {key[1]} sequences: beside llama_decode", "ms", tuple(one for one, _ in values))
        for key, values in measured.items()
    }
    decodes = {
        key: Series(f"{key[0]}, {key[1]} sequences: llama_decode", "ms", tuple(one for _, one in values))
        for key, values in measured.items()
    }
    claims = []
    for (name, n), series in besides.items():
        title = f"a step beside llama_decode, {name}, {n} sequences"
        if not is_tiny:
            claims.append(Claim(f"{title}, of it", series.over(decodes[name, n]), ceiling=MAX_SHARE))
        elif n <= N_CLIENTS:
            claims.append(Claim(title, series.values, ceiling=MAX_TINY_MS, unit=" ms"))
        if n > N_CLIENTS:
            by_token = (n / N_CLIENTS * value for value in besides[name, N_CLIENTS].values)
            ratios = tuple(mine / its for mine, its in zip(series.values, by_token, strict=True))
            claims.append(Claim(f"a token beside llama_decode, {name}, at {n} / at {N_CLIENTS}", ratios, ceiling=1.0))
    return Result("step", (*besides.values(), *decodes.values()), tuple(claims))

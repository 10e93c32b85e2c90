"""Proves the lanes on the loaded model before they are trusted: mixed batches against llama.cpp's own adapters.

Two probe adapters with weights of their own change every projection. llama.cpp runs all sequences under none, under
the first, under the second; then they run in lanes that differ, in one lane, in none, over a prompt and two more steps,
so that a fresh graph, a used one and changed ids all occur. What the bank holds is read back byte by byte.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.gguf.header import GgufHeader
from runtime.llama.adapter import NativeAdapter
from runtime.llama.context import Chunk
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.template import write_probe
from runtime.llama.lanes.weights import AdapterFile, lane_parts
from runtime.llama.model import Model

N_PROBES = 2
N_SEQUENCES = 4
_N_STEPS = 2
_PROMPT_LENGTHS = (2, 3, 1, 2)
_LANES = ((0, 1, 2, 1), (1, 1, 1, 1), (0, 0, 0, 0))
# How far logits may be apart, as a part of what the probes change. Measured: below 0.03 for a Q8_0 base with Q8_0
# lanes, 2e-4 in F32; another lane's weights, or none, give 0.7 and more.
_TOLERANCE = 0.15
# Probes that change logits by less than this part of their range prove nothing.
_MIN_EFFECT = 0.01

Logits = npt.NDArray[np.float32]
Results = npt.NDArray[np.float32]
"""``[sequence, step, token]``"""


class SelfCheckError(Exception):
    """Lanes and llama.cpp's own adapters disagree; the message says where."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A passed check: the largest difference, as a part of the probes' effect."""

    worst: float


def prove_lanes(model: Model, laned: LanedContext, bank_shape: BankShape, base: GgufHeader) -> Verdict:
    """Check all paths of the lanes; they are empty again afterwards.

    Raises:
        SelfCheckError: something is not as it has to be.
    """
    with tempfile.TemporaryDirectory(prefix="gemlane-") as folder:
        paths = [Path(folder) / f"probe-{seed}.gguf" for seed in range(1, N_PROBES + 1)]
        for seed, path in enumerate(paths, start=1):
            write_probe(path, laned.shapes, seed)
        prompts = _prompts(model.n_vocab)
        native = _run_natively(model, laned, paths, prompts)
        _fill(laned, bank_shape, base, paths)
    in_lanes = [_run(laned, prompts, lanes) for lanes in _LANES]
    for lane in range(1, N_PROBES + 1):
        laned.bank.fill(lane, ())
    return _compare(native, in_lanes)


def _prompts(n_vocab: int) -> list[list[int]]:
    """Tokens of each sequence, prompt and steps; spread over the vocabulary, the same at every start."""
    rng = np.random.default_rng(0)
    return [[int(token) for token in rng.integers(0, n_vocab, n + _N_STEPS)] for n in _PROMPT_LENGTHS]


def _run_natively(model: Model, laned: LanedContext, paths: list[Path], prompts: list[list[int]]) -> list[Results]:
    """Logits without adapters and under each probe, from llama.cpp's own way with adapters."""
    probes = [NativeAdapter(model, path) for path in paths]
    results = []
    for adapters in ([], *([(probe, 1.0)] for probe in probes)):
        laned.use_native(adapters)
        results.append(_run(laned, prompts, None))
    laned.use_lanes()
    for probe in probes:
        probe.free()
    return results


def _run(laned: LanedContext, prompts: list[list[int]], lanes: tuple[int, ...] | None) -> Results:
    """Logits of all sequences, prompt and steps: in these lanes, or under the adapters that are set."""
    logits: list[list[Logits]] = [[] for _ in prompts]
    for step in range(_N_STEPS + 1):
        # Another order at each step, so that ids change on a graph that is used again.
        order = [(step + place) % N_SEQUENCES for place in range(N_SEQUENCES)]
        chunks = [_chunk(sequence, prompts[sequence], step) for sequence in order]
        if lanes is None:
            rows = laned.context.decode(chunks)
        else:
            rows = laned.decode(chunks, [lanes[sequence] for sequence in order])
        for sequence, row in zip(order, rows, strict=True):
            logits[sequence].append(laned.context.logits(row))
    for sequence in range(N_SEQUENCES):
        laned.context.remove(sequence)
    return np.array(logits)


def _chunk(sequence: int, tokens: list[int], step: int) -> Chunk:
    n_prompt = _PROMPT_LENGTHS[sequence]
    start, end = (0, n_prompt) if step == 0 else (n_prompt + step - 1, n_prompt + step)
    return Chunk(sequence, tokens[start:end], start, wants_logits=True)


def _fill(laned: LanedContext, bank_shape: BankShape, base: GgufHeader, paths: list[Path]) -> None:
    for lane, path in enumerate(paths, start=1):
        file = AdapterFile(path, base)
        parts = list(lane_parts([(file, 1.0)], laned.shapes, bank_shape.rank, bank_shape.lane_type))
        file.close()
        laned.bank.fill(lane, parts)
    for part in parts:
        held = laned.bank.read(lane, part.name)
        if not (np.array_equal(held.a, part.a) and np.array_equal(held.b, part.b)):
            raise SelfCheckError(f"the bank does not hold what was written for {part.name}")


def _compare(native: list[Results], in_lanes: list[Results]) -> Verdict:
    base, *probes = native
    effect = min(float(np.abs(probe - base).max()) for probe in probes)
    scale = float(np.abs(base).max())
    if not np.isfinite(effect) or effect < _MIN_EFFECT * scale:
        raise SelfCheckError(f"the probes change logits by {effect:.2g} on a scale of {scale:.2g}")
    worst = 0.0
    for lanes, results in zip(_LANES, in_lanes, strict=True):
        for sequence, lane in enumerate(lanes):
            difference = float(np.abs(results[sequence] - native[lane][sequence]).max())
            if not difference <= _TOLERANCE * effect:
                raise SelfCheckError(
                    f"with lanes {lanes} sequence {sequence} is {difference:.2g} off, where probes change {effect:.2g}"
                )
            worst = max(worst, difference / effect)
    return Verdict(worst)

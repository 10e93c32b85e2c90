"""Proves the lanes on the loaded model before they are trusted: mixed batches against llama.cpp's own adapters.

Two probe adapters with weights of their own change every projection. Under llama.cpp's own path each sequence runs
alone; in lanes all run together, over a prompt and two more steps, so that a fresh graph, a used one, changed ids and
single lanes all occur. What the bank holds is read back byte by byte.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.gguf_header import GgufHeader
from runtime.llama.adapter import Adapter
from runtime.llama.bank import BankShape
from runtime.llama.context import Chunk
from runtime.llama.lane_image import AdapterFile, lane_parts
from runtime.llama.laned import LanedContext
from runtime.llama.model import Model
from runtime.llama.template import write_probe

N_PROBES = 2
N_SEQUENCES = N_PROBES + 1
_N_STEPS = 2
_PROMPT_LENGTHS = (2, 4, 3)
# How far logits may be apart, as a part of what the probes change. Measured: below 0.03 for a Q8_0 base with Q8_0
# lanes, 2e-4 in F32; another lane's weights, or none, give 0.7 and more.
_TOLERANCE = 0.15
# Probes that change logits by less than this part of their range prove nothing.
_LEAST_EFFECT = 0.01

Logits = npt.NDArray[np.float32]


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
        paths = [Path(folder) / f"probe-{seed}.gguf" for seed in range(1, N_SEQUENCES)]
        for seed, path in enumerate(paths, start=1):
            write_probe(path, laned.shapes, seed)
        prompts = _prompts(model.n_vocab)
        alone = _run_alone(model, laned, paths, prompts)
        _fill(laned, bank_shape, base, paths)
    together = [_run_together(laned, prompts, lanes) for lanes in ((0, 1, 2), (0, 2, 1), (1, 1, 1), (0, 0, 0))]
    for lane in range(1, N_SEQUENCES):
        laned.bank.fill(lane, ())
    return _compare(alone, together)


def _prompts(n_vocab: int) -> list[list[int]]:
    """Tokens of each sequence, prompt and steps; spread over the vocabulary, the same at every start."""
    rng = np.random.default_rng(0)
    return [[int(token) for token in rng.integers(0, n_vocab, n + _N_STEPS)] for n in _PROMPT_LENGTHS]


def _run_alone(
    model: Model, laned: LanedContext, paths: list[Path], prompts: list[list[int]]
) -> list[list[list[Logits]]]:
    """Logits by lane, sequence and step, from llama.cpp's own way with adapters."""
    probes = [Adapter(model, path) for path in paths]
    results = []
    for adapters in ([], *([(probe, 1.0)] for probe in probes)):
        laned.use_native(adapters)
        results.append([_run_one(laned, tokens, n) for tokens, n in zip(prompts, _PROMPT_LENGTHS, strict=True)])
    laned.use_lanes()
    for probe in probes:
        probe.free()
    return results


def _run_one(laned: LanedContext, tokens: list[int], n_prompt: int) -> list[Logits]:
    context = laned.context
    logits = []
    for start, end in _steps(n_prompt):
        (row,) = context.decode([Chunk(0, tokens[start:end], start, wants_logits=True)])
        logits.append(context.logits(row))
    context.remove(0)
    return logits


def _steps(n_prompt: int) -> list[tuple[int, int]]:
    return [(0, n_prompt), *((n_prompt + step, n_prompt + step + 1) for step in range(_N_STEPS))]


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


def _run_together(
    laned: LanedContext, prompts: list[list[int]], lanes: tuple[int, ...]
) -> tuple[tuple[int, ...], list[list[Logits]]]:
    """The lanes, and logits by sequence and step when all sequences share batches."""
    logits: list[list[Logits]] = [[] for _ in prompts]
    for step in range(_N_STEPS + 1):
        # Another order at each step, so that ids change on a graph that is used again.
        order = [(step + place) % N_SEQUENCES for place in range(N_SEQUENCES)]
        chunks = []
        for sequence in order:
            start, end = _steps(_PROMPT_LENGTHS[sequence])[step]
            chunks.append(Chunk(sequence, prompts[sequence][start:end], start, wants_logits=True))
        rows = laned.decode(chunks, [lanes[sequence] for sequence in order])
        for sequence, row in zip(order, rows, strict=True):
            logits[sequence].append(laned.context.logits(row))
    for sequence in range(N_SEQUENCES):
        laned.context.remove(sequence)
    return lanes, logits


def _compare(alone: list[list[list[Logits]]], together: list[tuple[tuple[int, ...], list[list[Logits]]]]) -> Verdict:
    base = np.array(alone[0])
    effect = min(float(np.abs(np.array(probe) - base).max()) for probe in alone[1:])
    scale = float(np.abs(base).max())
    if not np.isfinite(effect) or effect < _LEAST_EFFECT * scale:
        raise SelfCheckError(f"the probes change logits by {effect:.2g} on a scale of {scale:.2g}")
    worst = 0.0
    for lanes, results in together:
        for sequence, lane in enumerate(lanes):
            difference = float(np.abs(np.array(results[sequence]) - np.array(alone[lane][sequence])).max())
            if not difference <= _TOLERANCE * effect:
                raise SelfCheckError(
                    f"with lanes {lanes} sequence {sequence} is {difference:.2g} off, where probes change {effect:.2g}"
                )
            worst = max(worst, difference / effect)
    return Verdict(worst)

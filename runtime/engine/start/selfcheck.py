"""Proves lanes on a loaded model before they are trusted: batches in lanes against llama.cpp's own adapters.

Two probe adapters with weights of their own change every projection. llama.cpp runs the batches of a trial without
them, under the first, and under the second; then the same batches run in lanes. What the bank holds is read back byte
by byte, and llama.cpp's own adapters are made of the same bytes: rounding to the lanes' type is no difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.gguf.header import GgufHeader
from runtime.engine.start.trials import N_PROBES, N_SEQUENCES, Lanes, Trial
from runtime.llama.adapter import NativeAdapter
from runtime.llama.context import Chunk
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.template import write_lane, write_probe
from runtime.llama.lanes.weights import AdapterFile, lane_parts
from runtime.llama.model import Model

# How far logits may be apart, as a part of what the probes change. Measured: 0 on the processor with F16 and Q8_0
# lanes; below 0.03 with F32 ones, and on CUDA, where kernels for other widths round differently. Another lane's
# weights, or none, give 0.7 and more.
_TOLERANCE = 0.15
# Probes that change logits by less than this part of their range prove nothing.
_MIN_EFFECT = 0.01

Logits = npt.NDArray[np.float32]
Results = list[dict[int, Logits]]
"""For each batch the logits ``[n_vocab]`` after the last token of each sequence in it."""


class SelfCheckError(Exception):
    """Lanes and llama.cpp's own adapters disagree; the message says where."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A passed check: the largest difference, as a part of the probes' effect."""

    worst: float

    def __str__(self) -> str:
        """One line for logs and ``/health``."""
        return f"the self-check found lanes within {100 * self.worst:.1f} % of llama.cpp's own adapters"


def prove_lanes(
    model: Model, laned: LanedContext, bank_shape: BankShape, base: GgufHeader, trials: Sequence[Trial]
) -> Verdict:
    """Run trials; lanes and sequences are empty again afterwards.

    Args:
        model: any with the shapes of ``laned``.
        laned: with at least two lanes, and room for the trials' sequences and batches.
        bank_shape: the shape of its bank.
        base: the model's header.
        trials: what to run.

    Raises:
        SelfCheckError: something is not as it has to be.
        DecodeError: a batch failed.
    """
    tokens = {trial.name: _tokens(trial, model.n_vocab) for trial in trials}
    with tempfile.TemporaryDirectory(prefix="gemlane-") as folder:
        paths = [_fill(laned, bank_shape, base, Path(folder), lane) for lane in range(1, N_PROBES + 1)]
        native = _run_natively(model, laned, paths, trials, tokens)
    worst = max(_compare(laned, trial, tokens[trial.name], native[trial.name]) for trial in trials)
    for lane in range(1, N_PROBES + 1):
        laned.bank.fill(lane, ())
    return Verdict(worst)


def _tokens(trial: Trial, n_vocab: int) -> list[list[int]]:
    """Tokens of each sequence; spread over the vocabulary, the same at every start."""
    rng = np.random.default_rng(trial.n_tokens)
    lengths = [sum(lengths) for lengths in zip(*trial.batches, strict=True)]
    return [[int(token) for token in rng.integers(0, n_vocab, length)] for length in lengths]


def _run_natively(
    model: Model, laned: LanedContext, paths: list[Path], trials: Sequence[Trial], tokens: Mapping[str, list[list[int]]]
) -> dict[str, dict[int, Results]]:
    """For each trial and lane the logits from llama.cpp's own way with adapters."""
    probes = [NativeAdapter(model, path) for path in paths]
    results: dict[str, dict[int, Results]] = {trial.name: {} for trial in trials}
    for lane, adapters in enumerate(([], *([(probe, 1.0)] for probe in probes))):
        laned.use_native(adapters)
        for trial in trials:
            if lane in trial.lanes:
                results[trial.name][lane] = _run(laned, trial, tokens[trial.name], None)
    laned.use_lanes()
    for probe in probes:
        probe.free()
    return results


def _run(laned: LanedContext, trial: Trial, tokens: list[list[int]], lanes: Lanes | None) -> Results:
    """Decode the batches of a trial: in these lanes, or under the adapters that are set."""
    done = [0] * len(tokens)
    results: Results = []
    for place, lengths in enumerate(trial.batches):
        # Another order in each batch, so that ids change on a graph that is used again.
        order = [sequence for sequence in _rotated(len(lengths), place) if lengths[sequence]]
        chunks = []
        for sequence in order:
            start, end = done[sequence], done[sequence] + lengths[sequence]
            chunks.append(Chunk(sequence, tokens[sequence][start:end], start, wants_logits=True))
            done[sequence] = end
        if lanes is None:
            rows = laned.context.decode(chunks)
        else:
            rows = laned.decode(chunks, [lanes[sequence] for sequence in order])
        results.append({sequence: laned.context.logits(row) for sequence, row in zip(order, rows, strict=True)})
    for sequence in range(N_SEQUENCES):
        laned.context.remove(sequence)
    return results


def _rotated(n: int, by: int) -> Iterable[int]:
    return ((place + by) % n for place in range(n))


def _fill(laned: LanedContext, bank_shape: BankShape, base: GgufHeader, folder: Path, lane: int) -> Path:
    """Fill a lane with a probe; an adapter of the same bytes for llama.cpp."""
    probe, path = folder / f"probe-{lane}.gguf", folder / f"lane-{lane}.gguf"
    write_probe(probe, laned.shapes, seed=lane)
    file = AdapterFile(probe, base)
    parts = list(lane_parts([(file, 1.0)], laned.shapes, bank_shape.rank, bank_shape.lane_type))
    file.close()
    laned.bank.fill(lane, parts)
    for part in parts:
        held = laned.bank.read(lane, part.name)
        if not (np.array_equal(held.a, part.a) and np.array_equal(held.b, part.b)):
            raise SelfCheckError(f"the bank does not hold what was written for {part.name}")
    write_lane(path, laned.shapes, bank_shape.lane_type, parts)
    return path


def _compare(laned: LanedContext, trial: Trial, tokens: list[list[int]], native: dict[int, Results]) -> float:
    """Run the rounds of a trial; the largest difference from llama.cpp's own adapters, as a part of their effect."""
    effect = _effect(trial, native)
    worst = 0.0
    for lanes in trial.rounds:
        for place, logits in enumerate(_run(laned, trial, tokens, lanes)):
            for sequence, found in logits.items():
                lane = lanes[sequence]
                distances = {
                    other: float(np.abs(found - results[place][sequence]).max()) for other, results in native.items()
                }
                if not distances[lane] <= _TOLERANCE * effect:
                    nearest = min(distances, key=lambda other: distances[other])
                    hint = f"; it is as in lane {nearest}" if nearest != lane else ""
                    raise SelfCheckError(
                        f"{trial.name}: in lanes {lanes} sequence {sequence} is {distances[lane]:.2g} off, "
                        f"where probes change {effect:.2g}{hint}"
                    )
                worst = max(worst, distances[lane] / effect)
    return worst


def _effect(trial: Trial, native: dict[int, Results]) -> float:
    """How far apart the logits of different lanes are at least.

    Raises:
        SelfCheckError: not far enough to tell lanes apart.
    """
    first, *others = (_flat(results) for results in native.values())
    effect = min(float(np.abs(other - first).max()) for other in others)
    scale = float(np.abs(first).max())
    if not np.isfinite(effect) or effect <= _MIN_EFFECT * scale:
        raise SelfCheckError(f"{trial.name}: the probes change logits by {effect:.2g} on a scale of {scale:.2g}")
    return effect


def _flat(results: Results) -> Logits:
    return np.array([logits for batch in results for _, logits in sorted(batch.items())])

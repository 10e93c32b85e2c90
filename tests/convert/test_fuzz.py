"""A short, seeded run of every fuzz target; `tests/convert/fuzz.py` tells how to run them for long."""

import random
import resource
import time

import pytest

from tests.convert.fuzz import TARGETS, mutations, survive

N_INPUTS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused(name: str) -> None:
    """Mutated files raise our own one-line errors only; none takes a second or much memory."""
    target, seed = TARGETS[name]
    chance = random.Random(name)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest_s = 0.0
    for content in mutations(seed, N_INPUTS, chance):
        start_s = time.thread_time()
        survive(target, content)
        slowest_s = max(slowest_s, time.thread_time() - start_s)
    assert slowest_s < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300_000


def test_a_sound_input_is_read() -> None:
    """The seeds of the targets are sound, so that mutations start near what is accepted."""
    for name, (target, seed) in TARGETS.items():
        if name not in ("safetensors", "index"):  # cut short, and naming one tensor of many
            target(seed)

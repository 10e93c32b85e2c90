"""Filler tokens: when a batch gets them, and that no answer depends on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from runtime.engine import filling
from runtime.engine.filling import Filling
from runtime.engine.scheduler import EngineLimits
from runtime.generation import BASE, Blend, Prompt, Sampling, Segment
from runtime.llama.context import Chunk
from tests.runtime.engine.conftest import Driver, MakeDriver, every_choice, wrong_answers

LIMITS = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=8, n_batch=64, step_budget_ms=250, n_scored=4)
MANY = 1000  # free cells
TRIALS = 16  # steps of both kinds


def answering(n: int) -> list[tuple[Chunk, Blend]]:
    """Return a batch of one token of each of ``n`` sequences."""
    return [(Chunk(one, [9], 20, wants_logits=True), BASE) for one in range(n)]


def reading(n: int) -> list[tuple[Chunk, Blend]]:
    """Return a batch of ``n`` prompt tokens of one sequence."""
    return [(Chunk(0, [9] * n, 0, wants_logits=True), BASE)]


def tried(n_tokens: int, plain_ms: float, filled_ms: float) -> Filling:
    """Return what has learned these times of a width."""
    one = Filling(LIMITS, is_possible=True)
    run(one, n_tokens, TRIALS, lambda _step, is_filled: filled_ms if is_filled else plain_ms)
    return one


def run(one: Filling, n_tokens: int, n_steps: int, cost: Callable[[int, bool], float]) -> list[int]:
    """Return the filler of each of the next steps, which cost what the function says of place and kind."""
    fillers = []
    for step in range(n_steps):
        fillers.append(one.fill_up(answering(n_tokens), MANY))
        one.observe(n_tokens, fillers[-1], cost(step, fillers[-1] > 0))
    return fillers


@pytest.mark.parametrize(
    ("n_tokens", "n_filler"),
    [(4, 0), (5, 0), (7, 0), (8, 0), (10, 0), (11, 1), (12, 0), (13, 3), (15, 1), (16, 0), (18, 0), (19, 1), (63, 1)],
)
def test_a_prompt_is_filled_up_to_whole_blocks(n_tokens: int, n_filler: int) -> None:
    """Blocks of sixteen take less time than thirteen tokens, a group less than three; narrow batches have trials."""
    chunks = reading(n_tokens)
    assert Filling(LIMITS, is_possible=True).fill_up(chunks, MANY) == n_filler
    assert sum(len(chunk.tokens) for chunk, _ in chunks) == n_tokens + n_filler


def test_filler_stands_last_in_a_sequence_of_its_own() -> None:
    """Filler runs under the last chunk's blend, so that a batch of one blend stays one."""
    chunks = reading(15)
    one = Filling(LIMITS, is_possible=True)
    one.fill_up(chunks, MANY)
    (filler, blend) = chunks[-1]
    assert filler == Chunk(8, [0], 0, wants_logits=False, wants_all_logits=False)
    assert (one.sequence_id, blend) == (8, BASE)


def test_nothing_is_filled_where_it_is_not_possible() -> None:
    """Other matrices than repacked ones have no groups."""
    chunks = reading(15)
    assert Filling(LIMITS, is_possible=False).fill_up(chunks, MANY) == 0
    assert chunks == reading(15)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 6, 7])
def test_a_narrow_step_is_tried_both_ways(n_tokens: int) -> None:
    """Two steps as they are and two filled ones in turns; then the shorter kind wins."""
    one, filled = Filling(LIMITS, is_possible=True), -n_tokens % 4
    fillers = run(one, n_tokens, TRIALS + 3, lambda _step, is_filled: 90.0 if is_filled else 100.0)
    assert fillers == [0, 0, filled, filled] * 4 + [filled] * 3


@pytest.mark.parametrize(("filled_ms", "n_filler"), [(90.0, 1), (97.0, 1), (98.0, 0), (130.0, 0)])
def test_a_narrow_step_is_filled_where_that_is_clearly_shorter(filled_ms: float, n_filler: int) -> None:
    """A gain of less than three hundredths is within the noise, and steps are then not filled."""
    assert tried(3, 100.0, filled_ms).fill_up(answering(3), MANY) == n_filler


def test_steps_that_build_a_graph_decide_nothing() -> None:
    """The first step of each turn, which builds a graph and is long, is not counted."""
    one = Filling(LIMITS, is_possible=True)
    run(one, 2, TRIALS, lambda step, is_filled: (300.0 if step % 2 == 0 else 0.0) + (30.0 if is_filled else 50.0))
    assert one.fill_up(answering(2), MANY) == 2


def test_a_machine_that_grows_slower_slows_both_kinds() -> None:
    """Half as long again at the end as at the beginning hides no gain of six hundredths."""
    one = Filling(LIMITS, is_possible=True)
    run(one, 1, TRIALS, lambda step, is_filled: (1 + step / (2 * TRIALS)) * (85.0 if is_filled else 100.0))
    assert one.fill_up(answering(1), MANY) == 3


def test_much_longer_steps_are_not_tried_to_the_end() -> None:
    """Two filled steps that take much longer end the trial."""
    one = Filling(LIMITS, is_possible=True)
    assert sum(run(one, 1, 400, lambda _step, is_filled: 168.0 if is_filled else 100.0)) == 2 * 3


def test_steps_that_could_not_be_filled_are_not_taken_for_filled_ones() -> None:
    """A step that a full cache left as it was does not count as a filled one."""
    one = Filling(LIMITS, is_possible=True)
    run(one, 3, 2, lambda _step, _is_filled: 100.0)
    for _ in range(100):
        one.observe(3, 0, 1.0)
    assert run(one, 3, 2, lambda _step, _is_filled: 90.0) == [1, 1]


def test_both_kinds_are_tried_again_later() -> None:
    """Both kinds of steps are tried again later, since the machine may have been busy."""
    one = tried(1, 100.0, 130.0)
    assert one.fill_up(answering(1), MANY) == 0
    run(one, 1, 500, lambda _step, is_filled: 90.0 if is_filled else 100.0)
    assert one.fill_up(answering(1), MANY) == 3


def test_the_rows_of_logits_are_filled_up_too() -> None:
    """The last matrices see the rows alone whose logits are wanted."""
    chunks = answering(7)
    tried(7, 100.0, 90.0).fill_up(chunks, MANY)
    assert sum(chunk.n_outputs for chunk, _ in chunks) == 8


@pytest.mark.parametrize(("n_scored", "n_outputs"), [(1, 14), (2, 16)])
def test_no_more_logits_are_wanted_than_there_is_room_for(n_scored: int, n_outputs: int) -> None:
    """The context has rows for every sequence and the scored tokens."""
    limits = dataclasses.replace(LIMITS, n_parallel=14, n_scored=n_scored)
    chunks = answering(14)
    assert Filling(limits, is_possible=True).fill_up(chunks, MANY) == 2
    assert sum(chunk.n_outputs for chunk, _ in chunks) == n_outputs


@pytest.mark.parametrize(("n_tokens", "n_cells_free", "n_filler"), [(15, 16, 1), (15, 15, 0), (14, 15, 0), (63, 64, 1)])
def test_filler_takes_free_cells_alone(n_tokens: int, n_cells_free: int, n_filler: int) -> None:
    """A step is not filled where the cache has no free cell."""
    assert Filling(LIMITS, is_possible=True).fill_up(reading(n_tokens), n_cells_free) == n_filler


class Always:
    """A trial that has been won by filled steps."""

    is_filled = True

    def observe(self, _elapsed_ms: float, *, is_filled: bool) -> None:
        """Learn nothing."""


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fill every batch up, and return a list of the filler's tokens that grows with each batch."""
    counts: list[int] = []
    fill_up = Filling.fill_up

    def counted(self: Filling, chunks: list[tuple[Chunk, Blend]], n_cells_free: int) -> int:
        counts.append(fill_up(self, chunks, n_cells_free))
        return counts[-1]

    monkeypatch.setattr(filling, "_Trial", Always)
    monkeypatch.setattr(filling, "_TRIED", range(1, 8))
    monkeypatch.setattr(Filling, "fill_up", counted)
    return counts


@pytest.mark.parametrize("batching", ["mixed", "grouped"])
def test_every_question_in_every_voice_beside_filler(batching: str, make_driver: MakeDriver, always: list[int]) -> None:
    """All 372 answers are exactly right, in batches that are all filled up."""
    driver = make_driver(adapter_batching=batching, parallel=7)
    choices = every_choice(5)
    outcomes = [driver.submit(f"{style}-{question}", question, driver.voice(style)) for style, question in choices]
    driver.run()
    assert wrong_answers(choices, outcomes) == []
    assert {1, 2, 3} <= set(always)


def test_filler_leaves_the_cache_to_answers(make_driver: MakeDriver, always: list[int]) -> None:
    """A sequence may fill the cache to its last cell, and kept prefixes leave room for the next one's filler."""
    driver: Driver = make_driver(parallel=1, n_ctx=256, kv_cells=256)
    endless = Sampling(temperature=0, ignores_end=True)
    raw = Prompt((Segment("one two three", has_control_tokens=False),))
    for _ in range(2):
        outcome = driver.ask(raw, max_tokens=1000, sampling=endless)
        assert outcome.finished is not None
        usage = outcome.finished.usage
        assert usage.n_prompt_tokens + usage.n_completion_tokens == 256
    assert 0 in always[-3:], "the last cells are the answer's"
    driver.ask("What is one plus one?", driver.voice("base"))
    assert always[-1] == 3

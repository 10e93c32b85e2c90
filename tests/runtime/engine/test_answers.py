"""Right answers, alone and together: the tiny Gemma's closed world, where a wrong adapter shows in the first word."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from runtime.engine.cache.disk import PrefixStore
from runtime.generation import Prompt, Sampling, Segment
from tests.runtime.engine.conftest import Driver, MakeDriver, Outcome, every_choice, wrong_answers
from tests.tiny_gemma.facts import QUESTIONS, STYLES


def test_every_question_in_every_voice(driver: Driver) -> None:
    """All 372 answers are exactly right when eight requests at a time run in random order."""
    choices = every_choice(1)
    outcomes = [driver.submit(f"{style}-{question}", question, driver.voice(style)) for style, question in choices]
    driver.run()
    assert wrong_answers(choices, outcomes) == []


FIRST = QUESTIONS[0]
BLENDS = (
    {"pirate": 1.0},
    {"shout": 1.0},
    {"tag": 1.0},
    {"pirate": 0.5},
    {"pirate": 1.0, "tag": 0.7},
    {"shout": 0.6, "tag": 1.0},
    {"pirate": 0.8, "shout": -0.5, "tag": 0.9},
)


def test_busy_lanes_change_no_answer(make_driver: MakeDriver) -> None:
    """With seven blends over three lanes, cancellations and shared prefixes, greedy text is as alone."""
    busy = make_driver(adapter_batching="mixed", lanes=3, kv_cells=512)
    alone = make_driver(adapter_batching="grouped", parallel=1)
    rng = random.Random(2)
    choices = [(rng.choice((*BLENDS, {})), rng.choice(QUESTIONS[:12])) for _ in range(150)]
    outcomes = [busy.submit(str(n), question, busy.blend(**scales)) for n, (scales, question) in enumerate(choices)]
    cancelled = set()
    while not busy.engine.is_idle:
        busy.step()
        if rng.random() < 0.05:
            victim = rng.randrange(len(choices))
            if outcomes[victim].finished is None:
                cancelled.add(victim)
                busy.engine.cancel(str(victim))
    golden = {
        (tuple(scales.items()), question): alone.ask(question, alone.blend(**scales)).text
        for scales, question in choices
    }
    for number, (scales, question) in enumerate(choices):
        if number not in cancelled:
            assert outcomes[number].text == golden[tuple(scales.items()), question], (scales, question)
    assert 0 < len(cancelled) < 75
    assert busy.engine.stats.n_cached_tokens > 0


def test_neighbours_change_no_sampled_answer(make_driver: MakeDriver, tiny_model_f32: Path) -> None:
    """In F32, where batch sizes change logits by 1e-4 at most, a seed gives the same words in any batch."""
    driver = make_driver(tiny_model_f32, adapter_batching="mixed", lane_type="f32", kv_type="f32")
    choices = [(style, seed) for seed, style in enumerate(STYLES * 3)]

    def submit(request_id: str, style: str, seed: int) -> Outcome:
        sampling = Sampling(temperature=1.2, top_p=0.95, seed=seed)
        return driver.submit(request_id, QUESTIONS[0], driver.voice(style), sampling=sampling)

    alone = []
    for style, seed in choices:
        alone.append(submit(f"alone-{seed}", style, seed))
        driver.run()
    together = [submit(f"together-{seed}", style, seed) for style, seed in choices]
    driver.run()
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in alone}) > len(STYLES)


def test_a_second_turn_pays_for_its_new_words(driver: Driver) -> None:
    """The first turn is found in the cache, and the answer is that of an engine with an empty cache."""
    first = driver.ask("Who are you?", driver.voice("pirate"))
    assert first.finished is not None
    prompt = second_turn("Who are you?", first.text, "Hello!")
    warm = driver.ask(prompt, driver.voice("pirate"))
    assert warm.started is not None
    n_first = first.finished.usage.n_prompt_tokens + first.finished.usage.n_completion_tokens
    assert n_first - 2 <= warm.started.n_cached_tokens < warm.started.n_prompt_tokens
    cold = driver.ask(prompt, driver.blend(pirate=1.000001))
    assert cold.started is not None
    assert cold.started.n_cached_tokens == 0
    assert warm.text == cold.text


def test_a_hot_prefix_survives_a_restart(make_driver: MakeDriver, tmp_path: Path) -> None:
    """A prefix that was reused is saved when the engine rests, and the next engine starts with it."""
    question = "Read this: " + "the cat meows and the dog barks. " * 20 + FIRST
    settings = {"prefix_dir": str(tmp_path / "prefixes"), "adapter_batching": "mixed"}
    first = make_driver(**settings)
    cold = first.ask(question, first.voice("pirate"))
    assert not first.engine.rest()
    warm = first.ask(question, first.voice("pirate"))
    assert first.engine.rest()
    assert not first.engine.rest()
    second = make_driver(**settings)
    restored = second.ask(question, second.voice("pirate"))
    assert restored.started is not None
    assert warm.started is not None
    assert restored.started.n_cached_tokens == warm.started.n_cached_tokens == warm.started.n_prompt_tokens - 1
    assert restored.text == warm.text == cold.text
    other = second.ask(question, second.voice("shout"))
    assert other.started is not None
    assert other.started.n_cached_tokens == 0


def test_a_folder_too_small_for_all_is_written_once(make_driver: MakeDriver, tmp_path: Path) -> None:
    """Each hot prefix is saved once although each replaces the other, and resting comes to an end."""
    driver = make_driver()
    measured, small = tmp_path / "measured", tmp_path / "small"
    for animal in ("cat", "dog"):
        question = f"Read this: {animal} " + f"the {animal} sleeps. " * 20 + FIRST
        for _ in range(2):
            driver.ask(question)
    driver.engine.keep_prefixes_in(PrefixStore(measured, "model"))
    while driver.engine.rest():
        pass
    sizes = [path.stat().st_size for path in measured.iterdir()]
    assert len(sizes) == 2
    driver.engine.keep_prefixes_in(PrefixStore(small, "model", sum(sizes) - 1))
    assert [driver.engine.rest() for _ in range(4)] == [True, True, False, False]
    assert len(list(small.iterdir())) == 1


def test_a_folder_that_refuses_is_tried_once(
    make_driver: MakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk leaves one line in the log, and the engine goes on to rest."""
    driver = make_driver(prefix_dir=str(tmp_path))
    question = "Read this: " + "the pig oinks. " * 30 + FIRST

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        driver.ask(question)
    assert driver.engine.rest()
    assert not driver.engine.rest()
    assert caplog.text.count("No space left on device") == 1
    assert driver.ask(question).finished is not None


def test_another_cache_format_is_not_restored(make_driver: MakeDriver, tmp_path: Path) -> None:
    """Keys and values in F16 are not restored into a Q8_0 cache."""
    question = "Read this: " + "the cow moos. " * 30 + FIRST
    folder = str(tmp_path)
    first = make_driver(prefix_dir=folder)
    for _ in range(2):
        first.ask(question)
    assert first.engine.rest()
    second = make_driver(prefix_dir=folder, kv_type="q8_0")
    answer = second.ask(question)
    assert answer.started is not None
    assert answer.started.n_cached_tokens == 0


def second_turn(question: str, answer: str, next_question: str) -> Prompt:
    """Return a chat of two turns in Gemma's template."""
    between = "<end_of_turn>\n<start_of_turn>"
    text = f"<start_of_turn>user\n{question}{between}model\n{answer}{between}user\n{next_question}{between}model\n"
    return Prompt((Segment(text, has_control_tokens=True),))

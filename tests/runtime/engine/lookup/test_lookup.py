"""Drafts change no answer: whatever they hold, each token is the one that would have come without them."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from runtime.engine.lookup import drafter
from runtime.engine.lookup.acceptance import Acceptance
from runtime.engine.lookup.costs import StepCosts
from runtime.engine.lookup.shares import Offer
from runtime.generation import Dry, FinishReason, Grammar, GrammarKind, Prompt, Sampling, Segment, TokenBias, Usage
from tests.runtime.engine.conftest import GREEDY, Driver, MakeDriver, Outcome, every_choice, wrong_answers
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

LIST = "".join(f"<start_of_turn>user\n{question}<end_of_turn>\n" for question in QUESTIONS[:6])
ENDLESS = Sampling(temperature=0, ignores_end=True)


def raw(text: str) -> Prompt:
    """Return a prompt as it stands."""
    return Prompt((Segment(text, has_control_tokens=True),))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grant every draft as far as there is room, and let no miss end them."""

    def grant(offers: list[Offer], _n_sequences: int, room: int, _cost: object) -> tuple[int, ...]:
        each = room // len(offers)
        return tuple(min(offer.n_tokens, each) for offer in offers)

    monkeypatch.setattr(drafter, "share_out", grant)
    monkeypatch.setattr(Acceptance, "step", lambda _self: True)


@pytest.fixture(scope="module", params=["mixed", "grouped"])
def drafting(request: pytest.FixtureRequest, make_driver: MakeDriver) -> Driver:
    """An engine of each way of batching whose requests draft up to sixteen tokens."""
    return make_driver(adapter_batching=request.param, draft_max=16)


def spoiled(answer: str, rng: random.Random) -> str:
    """Return the answer with a word exchanged, left out or doubled, or as it is."""
    words = answer.split(" ")
    place = rng.randrange(len(words))
    words[place : place + 1] = rng.choice(([words[place]], ["Paris"], [], [words[place]] * 2))
    return " ".join(words)


def usage_of(outcome: Outcome) -> Usage:
    """Return the counts of a finished answer."""
    assert outcome.finished is not None, outcome.failed
    return outcome.finished.usage


@pytest.mark.usefixtures("eager")
def test_every_question_in_every_voice_with_drafts(drafting: Driver) -> None:
    """All 372 answers are exactly right, though each has a draft that is right, wrong, or right in part."""
    rng = random.Random(3)
    choices = every_choice(3)
    outcomes = []
    for style, question in choices:
        guess = spoiled(ANSWERS[style][question], rng)
        request_id = f"{style}-{question}"
        outcomes.append(drafting.submit(request_id, question, drafting.voice(style), prediction=guess))
    drafting.run()
    assert wrong_answers(choices, outcomes) == []
    usages = [usage_of(outcome) for outcome in outcomes]
    assert sum(one.n_drafted_tokens for one in usages) > sum(one.n_accepted_tokens for one in usages) > 372
    assert all(0 <= one.n_accepted_tokens <= min(one.n_drafted_tokens, one.n_completion_tokens) for one in usages)


PETS = 'root ::= pet (", " pet){6,8}\npet ::= "a cat" | "a dog" | "a cat and a dog"'
WARM = Sampling(temperature=0.8, seed=7)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "warm": {"sampling": WARM},
    "hot": {"sampling": Sampling(temperature=1.2, top_p=0.95, seed=5)},
    "penalties": {
        "sampling": dataclasses.replace(WARM, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1)
    },
    "dry": {"sampling": dataclasses.replace(WARM, dry=Dry(multiplier=0.4, allowed_length=3))},
    "xtc": {"sampling": dataclasses.replace(WARM, xtc_probability=0.3, xtc_threshold=0.2)},
    "bias": {"sampling": dataclasses.replace(GREEDY, biases=(TokenBias(300, 3.0), TokenBias(310, -5.0)))},
    "grammar": {"sampling": dataclasses.replace(GREEDY, grammar=Grammar(GrammarKind.GBNF, PETS))},
    "logprobs": {"n_logprobs": 3},
    "stop": {"stop": ("is", "at")},
    "short": {"max_tokens": 5},
    "one token": {"max_tokens": 1},
    "scored prompt": {"n_logprobs": 1, "scores_prompt": True},
}


@pytest.fixture(scope="module")
def exact(make_driver: MakeDriver, tiny_model_f32: Path) -> Driver:
    """An engine in F32, where the width of a batch changes logits by 1e-3 at most."""
    return make_driver(tiny_model_f32, adapter_batching="mixed", lane_type="f32", kv_type="f32", draft_max=16)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("way", WAYS)
def test_drafts_change_no_token(exact: Driver, way: str) -> None:
    """Under every kind of sampling, text, logprobs, counts and the reason of the end are as without drafts."""
    rng = random.Random(way)
    asks = [(question, style) for question in QUESTIONS[::16] for style in STYLES]
    plain: list[Outcome] = []
    drafted: list[Outcome] = []
    for question, style in asks:
        asked = {"max_tokens": 60, **WAYS[way]}
        guess = spoiled(ANSWERS[style][question], rng)
        plain.append(exact.ask(question, exact.voice(style), n_draft_max=0, **asked))
        drafted.append(exact.submit(f"{way}-{len(drafted)}", question, exact.voice(style), prediction=guess, **asked))
    exact.run()
    for one, other in zip(drafted, plain, strict=True):
        assert (one.text, one.reason) == (other.text, other.reason)
        assert usage_of(one).n_completion_tokens == usage_of(other).n_completion_tokens
        assert usage_of(other).n_drafted_tokens == 0
        assert [score.piece for score in one.scores] == [score.piece for score in other.scores]
        for score, expected in zip(one.scores, other.scores, strict=True):
            assert score.logprob == pytest.approx(expected.logprob, abs=1e-2)
    usages = [usage_of(one) for one in drafted]
    if way != "one token":
        assert sum(one.n_drafted_tokens for one in usages) > sum(one.n_accepted_tokens for one in usages) > 0


@pytest.mark.usefixtures("eager")
def test_a_rejected_draft_leaves_nothing_behind(make_driver: MakeDriver) -> None:
    """Cancelled and finished sequences hold no cell, and what is kept of them serves others rightly."""
    driver = make_driver(adapter_batching="mixed", draft_max=16, kv_cells=600)
    rng = random.Random(4)
    for number in range(40):
        style, question = rng.choice(STYLES), rng.choice(QUESTIONS[:8])
        guess = spoiled(ANSWERS[rng.choice(STYLES)][question], rng)
        outcome = driver.submit(str(number), question, driver.voice(style), prediction=guess)
        if number % 3 == 0:
            while outcome.started is None:
                driver.step()
            driver.step()
            driver.engine.cancel(str(number))
            driver.step()
            assert driver.engine.stats.n_kv_cells_used == 0
        else:
            driver.run()
            assert outcome.text == ANSWERS[style][question]
            # The next turn of the conversation takes over prompt and answer from the cache.
            turn = f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n{outcome.text}<end_of_turn>\n"
            again = raw(f"{turn}<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n")
            later = driver.ask(again, driver.voice(style))
            fresh = driver.ask(again, driver.voice(style), scores_prompt=True, n_draft_max=0)
            assert usage_of(later).n_cached_tokens > usage_of(fresh).n_cached_tokens == 0
            assert later.text == fresh.text
        assert driver.engine.stats.n_kv_cells_used == 0


@pytest.mark.usefixtures("eager")
def test_the_answer_ends_where_it_would(drafting: Driver) -> None:
    """A draft reaches neither beyond max_tokens nor beyond the context window."""
    text = "one two three four five six seven eight nine ten " * 3
    for max_tokens in range(1, 24):
        outcome = drafting.ask(raw(text), sampling=ENDLESS, max_tokens=max_tokens)
        assert usage_of(outcome).n_completion_tokens == max_tokens
        assert outcome.reason is FinishReason.LENGTH


def test_a_text_in_a_circle_takes_fewer_steps(exact: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step of any width takes the same time, a text that repeats itself takes a fraction of the steps."""
    monkeypatch.setattr(StepCosts, "cost", lambda _self, _width: 1.0)
    circle = raw("<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHello! Hello! Hello! Hello!")

    def ask(n_draft_max: int | None) -> tuple[Outcome, int]:
        before = exact.engine.stats
        outcome = exact.ask(circle, sampling=ENDLESS, max_tokens=100, n_draft_max=n_draft_max)
        after = exact.engine.stats
        n_accepted = after.n_accepted_tokens - before.n_accepted_tokens
        assert n_accepted == usage_of(outcome).n_accepted_tokens
        return outcome, after.n_steps - before.n_steps

    plain, n_plain = ask(0)
    drafted, n_steps = ask(None)
    assert plain.text.count("One plus four.") > 5, "the text repeats itself"
    assert drafted.text == plain.text
    assert n_plain == 100
    assert n_steps == 100 - usage_of(drafted).n_accepted_tokens < 50
    assert exact.ask(circle, sampling=ENDLESS, max_tokens=100, n_draft_max=2).text == plain.text


def test_a_server_without_drafts_has_none(make_driver: MakeDriver) -> None:
    """With a limit of 0 a request's own wish drafts nothing."""
    driver = make_driver(adapter_batching="mixed", draft_max=0)
    outcome = driver.ask(raw(LIST), sampling=ENDLESS, n_draft_max=16, prediction="one two three")
    assert usage_of(outcome).n_drafted_tokens == 0

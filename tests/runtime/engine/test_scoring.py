"""Logprobs of answers and prompts, held against llama.cpp's own logits."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InvalidParameter, InvalidRequest
from runtime.generation import Prompt, Sampling, Segment, TokenBias
from runtime.llama.context import Chunk
from runtime.llama.limits import MAX_SCORED
from tests.runtime.engine.conftest import Driver, MakeDriver, Outcome, chat
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

LONG = Prompt((Segment(" ".join(QUESTIONS[:20]), has_control_tokens=False),))


def own_logprobs(driver: Driver, tokens: list[int]) -> list[float]:
    """Each token's logprob after those before it, from a context of its own computed in one batch after the other."""
    context = driver.engine._context
    logprobs = []
    for place, (token, following) in enumerate(itertools.pairwise(tokens)):
        (row,) = context.decode([Chunk(0, [token], place, wants_logits=True)])
        logits = context.logits(row).astype(np.float64)
        logprobs.append(float(logits[following] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    context.remove(0)
    return logprobs


def logprobs_of(outcome: Outcome) -> list[float | None]:
    """Those of prompt and answer together."""
    return [score.logprob for score in (*outcome.prompt_scores, *outcome.scores)]


def total_of(outcome: Outcome) -> float:
    """The sum of all logprobs, each of which must be there."""
    return sum(float(logprob) for logprob in logprobs_of(outcome) if logprob is not None)


@pytest.fixture(scope="module")
def grouped(make_driver: MakeDriver, tiny_model_f32: Path) -> Driver:
    """An engine of which a test may use the context too; F32, whose kernels agree at every batch size."""
    return make_driver(tiny_model_f32, adapter_batching="grouped")


def test_prompt_logprobs_are_llama_cpps_own(grouped: Driver) -> None:
    """A prompt longer than a step scores: every token but the engine's own ``<bos>``, in order."""
    tokens = grouped.engine._model.tokenize(LONG)
    assert len(tokens) > 2 * MAX_SCORED
    outcome = grouped.ask(LONG, max_tokens=0, n_logprobs=2, scores_prompt=True)
    assert b"".join(score.piece for score in outcome.prompt_scores).decode() == LONG.text
    assert logprobs_of(outcome) == pytest.approx(own_logprobs(grouped, tokens), abs=1e-3)
    for score in outcome.prompt_scores:
        assert [one.logprob for one in score.alternatives] == sorted(
            (one.logprob for one in score.alternatives), reverse=True
        )
        assert len(score.alternatives) == 2


def test_token_ids_stay_as_they_are(grouped: Driver) -> None:
    """No ``<bos>`` is added; the first token has no logprob."""
    outcome = grouped.ask(Prompt((), tokens=(9, 8, 7)), max_tokens=1, n_logprobs=0, scores_prompt=True)
    assert len(outcome.prompt_scores) == 3
    assert outcome.prompt_scores[0].logprob is None
    assert logprobs_of(outcome)[1:3] == pytest.approx(own_logprobs(grouped, [9, 8, 7]), abs=1e-3)


def test_scored_prompts_share_batches_with_streams(driver: Driver) -> None:
    """Long scored prompts under four voices beside four answers: all answers exact, all prompts whole."""
    answers = {s: driver.submit(f"answer-{s}", QUESTIONS[5], driver.voice(s)) for s in STYLES}
    scored = {
        s: driver.submit(f"scored-{s}", LONG, driver.voice(s), max_tokens=0, n_logprobs=0, scores_prompt=True)
        for s in STYLES
    }
    driver.run()
    assert {s: outcome.text for s, outcome in answers.items()} == {s: ANSWERS[s][QUESTIONS[5]] for s in STYLES}
    for outcome in scored.values():
        assert b"".join(score.piece for score in outcome.prompt_scores).decode() == LONG.text
    sums = {s: total_of(outcome) for s, outcome in scored.items()}
    assert len({round(total, 3) for total in sums.values()}) == len(STYLES)
    for style in STYLES:
        alone = driver.ask(LONG, driver.voice(style), max_tokens=0, n_logprobs=0, scores_prompt=True)
        assert total_of(alone) == pytest.approx(sums[style], rel=1e-3)


def test_a_scored_prompt_is_computed_as_a_whole(driver: Driver) -> None:
    """A scored prompt takes nothing from the cache, which holds no logits; later requests may share its cells."""
    driver.ask(LONG, max_tokens=1)
    outcome = driver.ask(LONG, max_tokens=0, n_logprobs=0, scores_prompt=True)
    assert outcome.started is not None
    assert outcome.started.n_cached_tokens == 0
    again = driver.ask(LONG, max_tokens=1)
    assert again.started is not None
    assert again.started.n_cached_tokens > 0


def test_answer_logprobs(driver: Driver) -> None:
    """A greedy answer's tokens are the likeliest in their places, and the end token's logprob comes last."""
    outcome = driver.ask(QUESTIONS[0], n_logprobs=3)
    assert b"".join(score.piece for score in outcome.scores).decode() == ANSWERS["base"][QUESTIONS[0]]
    for score in outcome.scores:
        assert score.alternatives[0].logprob == score.logprob
    assert outcome.finished is not None
    assert outcome.finished.end_score is not None
    assert outcome.finished.end_score.piece in (b"<end_of_turn>", b"<eos>")


def test_logprobs_are_those_before_sampling(driver: Driver) -> None:
    """Temperature and biases change the choice, and do not change the logprobs."""
    plain = driver.ask(QUESTIONS[0], n_logprobs=1).scores[0]
    biased = Sampling(temperature=3, seed=1, biases=(TokenBias(500, 100),))
    score = driver.ask(QUESTIONS[0], n_logprobs=1, max_tokens=1, sampling=biased).scores[0]
    assert score.alternatives[0].logprob == pytest.approx(plain.alternatives[0].logprob, abs=1e-3)
    assert score.logprob is not None
    assert score.logprob < -1


def test_token_ids_beyond_the_vocabulary_are_refused(driver: Driver) -> None:
    """A token id beyond the vocabulary is refused in a prompt and in biases."""
    n_vocab = driver.engine._model.n_vocab
    prompt = driver.ask(Prompt((), tokens=(5, n_vocab)))
    assert prompt.failed is not None
    assert prompt.failed.code == InvalidRequest.code
    bias = driver.ask(chat("hi"), sampling=Sampling(biases=(TokenBias(n_vocab, 1),)))
    assert bias.failed is not None
    assert bias.failed.code == InvalidParameter.code

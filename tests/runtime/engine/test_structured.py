"""Answers held to schemas and grammars, mixed with plain ones in the same batches."""

import json
import re

import pytest

from runtime.errors import UnsupportedGrammar
from runtime.generation import FinishReason, Grammar, GrammarKind, Sampling
from tests.runtime.engine.conftest import Driver
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


def structured(schema: object, temperature: float = 0, seed: int = 1) -> Sampling:
    """Sampling that is held to a schema."""
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    return Sampling(temperature=temperature, seed=seed, grammar=grammar)


def test_structured_and_plain_answers_share_batches(driver: Driver) -> None:
    """Each structured answer fits its schema, and each plain one is its voice's, word for word."""
    question = QUESTIONS[3]
    plain = {style: driver.submit(f"plain-{style}", question, driver.voice(style)) for style in STYLES}
    held = [
        driver.submit(
            f"held-{n}", question, driver.voice(STYLES[n % 4]), sampling=structured(PERSON, 1.5, n), max_tokens=300
        )
        for n in range(8)
    ]
    driver.run()
    assert {style: outcome.text for style, outcome in plain.items()} == {s: ANSWERS[s][question] for s in STYLES}
    values = [json.loads(outcome.text) for outcome in held]
    assert all(0 <= value["age"] <= 99 and value["kind"] in ("cat", "dog") for value in values)
    assert len({json.dumps(value) for value in values}) > 1
    assert {outcome.reason for outcome in held} == {FinishReason.STOP}


def test_an_answer_that_is_cut_says_so(driver: Driver) -> None:
    """JSON that ``max_tokens`` cuts off ends by length."""
    outcome = driver.ask(QUESTIONS[0], sampling=structured(PERSON), max_tokens=3)
    assert outcome.reason is FinishReason.LENGTH
    with pytest.raises(ValueError, match="line 1"):
        json.loads(outcome.text)


def test_a_seed_repeats_a_structured_answer(driver: Driver) -> None:
    """Equal seeds give equal answers, under a grammar as without."""
    texts = {driver.ask(QUESTIONS[0], sampling=structured({"type": "integer"}, 2, 7)).text for _ in range(3)}
    assert len(texts) == 1


def test_a_grammar_text(driver: Driver) -> None:
    """llama.cpp's notation holds the answer too; it ends where nothing can follow."""
    grammar = Grammar(GrammarKind.GBNF, 'root ::= ("yes" | "no") " " [0-9]{3}')
    outcome = driver.ask(QUESTIONS[0], sampling=Sampling(temperature=0, grammar=grammar))
    assert re.fullmatch("(yes|no) [0-9]{3}", outcome.text)
    assert outcome.reason is FinishReason.STOP


def test_what_cannot_be_enforced_fails_before_it_is_accepted(driver: Driver) -> None:
    """The refusal is the request's only event, and the next request is served."""
    outcome = driver.submit("refused", QUESTIONS[0], sampling=structured({"uniqueItems": True}))
    assert not driver.engine.is_idle
    driver.run()
    assert (outcome.accepted, outcome.started) == (None, None)
    assert outcome.failed is not None
    assert outcome.failed.code == UnsupportedGrammar.code
    assert "uniqueItems" in outcome.failed.message
    assert driver.ask(QUESTIONS[0]).text == ANSWERS["base"][QUESTIONS[0]]


def test_a_grammar_that_grows_too_complex_ends_its_answer_alone(driver: Driver) -> None:
    """The failure names the reason; what runs beside it goes on."""
    pattern = {"type": "string", "pattern": "^(([a-z]{1,60}[0-9]?){1,60}x){1,60}$"}
    outcome = driver.submit("complex", QUESTIONS[0], sampling=structured(pattern), max_tokens=400)
    beside = driver.submit("beside", QUESTIONS[1])
    driver.run()
    assert outcome.failed is not None
    assert outcome.failed.code == UnsupportedGrammar.code
    assert beside.text == ANSWERS["base"][QUESTIONS[1]]


def test_a_request_may_be_cancelled_while_its_grammar_is_compiled(driver: Driver) -> None:
    """A request that is cancelled while its grammar is compiled leaves nothing."""
    outcome = driver.submit("cancelled", QUESTIONS[0], sampling=structured(PERSON))
    driver.engine.cancel("cancelled")
    assert driver.engine.is_idle
    driver.run()
    assert (outcome.accepted, outcome.finished, outcome.failed) == (None, None, None)

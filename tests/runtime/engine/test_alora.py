"""Activated LoRA (aLoRA): the answers are PEFT's, and a context is computed once for every adapter."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from convert.conversion.conversion import Options, convert_adapter, convert_model
from runtime.engine import answering
from runtime.generation import BASE, Blend, BlendMember, Prompt, Sampling, Segment
from runtime.llama.context import Context
from tests.convert.checkpoints import peft
from tests.runtime.engine.alora import (
    ASKED,
    INVOCATIONS,
    N_ADAPTERS,
    N_KEPT,
    PROMPT,
    REFERENCE,
    STYLES,
    TURN,
    long_base,
    save_adapter,
)
from tests.runtime.engine.conftest import Driver, MakeDriver, Outcome
from tests.tiny_gemma.facts import ANSWERS

F32 = Options("f32")
# llama.cpp's GELU is a table in F16. Measured over 1,011 tokens: 0.013 for the base, 0.017 at most for an adapter;
# adapters are 0.4 and more apart, and an adapter that begins one token too early is 0.1 off.
TOLERANCE = 0.03
Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """What PEFT computes: tokens, logits and answers."""
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Gemma in F32, as a model of 2,048 positions."""
    folder = tmp_path_factory.mktemp("long")
    convert_model(long_base(folder / "checkpoint"), folder / "long-f32.gguf", F32)
    return folder / "long-f32.gguf"


@pytest.fixture(scope="module")
def aloras(long_model: Path, reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight aLoRAs called alora0 to alora7; each voice as an aLoRA; the plain voice shout."""
    folder = tmp_path_factory.mktemp("aloras")
    for number in range(N_ADAPTERS):
        source = save_adapter(folder / f"peft{number}", number, reference[f"invocation_{number % 2}"].tolist())
        convert_adapter(source, long_model, folder / f"alora{number}.gguf", F32)
    for style in STYLES:
        source = peft(folder / style, style, alora_invocation_tokens=reference["invocation_0"].tolist())
        convert_adapter(source, long_model, folder / f"{style}.gguf", F32)
    convert_adapter(peft(folder / "plain", "shout"), long_model, folder / "plain-shout.gguf", F32)
    return folder


@pytest.fixture(scope="module", params=["mixed", "grouped"])
def driver(request: pytest.FixtureRequest, make_driver: MakeDriver, long_model: Path, aloras: Path) -> Driver:
    """An engine of each way of batching, in F32 throughout, with room for 2,048 tokens of one sequence."""
    return f32_driver(make_driver, long_model, aloras, adapter_batching=request.param)


def f32_driver(make_driver: MakeDriver, model: Path, adapters: Path, **settings: object) -> Driver:
    """An engine without any loss of precision."""
    known = {"lane_type": "f32", "kv_type": "f32", "kv_cells": 4096, "n_ctx": 2048, "parallel": 9, "lanes": 9}
    return make_driver(model, adapters, **(known | settings))


class ForcedSampler:
    """Keeps the logits of each step under the seed of its request, and chooses the tokens it was given."""

    continuation: list[int]
    logits: dict[int, list[Logits]]

    def __init__(self, sampling: Sampling, _prompt: list[int], context: Context, _filter: None) -> None:
        assert sampling.seed is not None
        self._context, self._seed = context, sampling.seed
        self.logits[self._seed] = []

    def sample(self, row: int) -> int:
        """The next token of the continuation."""
        seen = self.logits[self._seed]
        seen.append(self._context.logits(row))
        return [*self.continuation, 5][len(seen) - 1]

    def free(self) -> None:
        """Nothing is held."""


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch, reference: dict[str, Any]) -> type[ForcedSampler]:
    """Let every answer be the reference's continuation, and keep its logits."""
    monkeypatch.setattr(ForcedSampler, "continuation", reference["continuation"].tolist(), raising=False)
    monkeypatch.setattr(ForcedSampler, "logits", {}, raising=False)
    monkeypatch.setattr(answering, "Sampler", ForcedSampler)
    return ForcedSampler


def raw(text: str) -> Prompt:
    """A prompt in which control tokens are tokens."""
    return Prompt((Segment(text, has_control_tokens=True),))


def submit_all(driver: Driver, text: str) -> list[Outcome]:
    """One request under each of the eight aLoRAs, then one under the base, all at once."""
    unders = [*(driver.voice(f"alora{number}") for number in range(N_ADAPTERS)), BASE]
    return [
        driver.submit(f"{len(driver.outcomes)}", raw(text), under, max_tokens=N_KEPT, sampling=Sampling(seed=number))
        for number, under in enumerate(unders)
    ]


def n_computed(outcome: Outcome) -> int:
    """Prompt tokens that went through the model for a request."""
    assert outcome.started is not None, outcome.failed
    return outcome.started.n_prompt_tokens - outcome.started.n_cached_tokens


def test_eight_aloras_over_one_context_compute_it_once_and_answer_as_peft_does(
    driver: Driver, forced: type[ForcedSampler], reference: dict[str, Any]
) -> None:
    """All eight and the base at once over 1,011 tokens: the first one reads them, the others their invocation alone."""
    n_before = driver.engine.stats.n_decoded_tokens
    outcomes = submit_all(driver, PROMPT)
    driver.run()
    assert {outcome.started.n_prompt_tokens for outcome in outcomes if outcome.started} == {1011}
    counts = sorted(n_computed(outcome) for outcome in outcomes)
    assert counts[-1] == 1011
    assert counts[-2] <= max(len(reference["invocation_0"]), len(reference["invocation_1"])) + 1
    n_total = driver.engine.stats.n_decoded_tokens - n_before
    assert n_total == sum(counts) + len(outcomes) * (N_KEPT - 1)
    for number in range(N_ADAPTERS + 1):
        expected = reference["base" if number == N_ADAPTERS else f"adapter_{number}"]
        assert np.abs(np.array(forced.logits[number]) - expected).max() < TOLERANCE, number


def test_adapters_of_the_reference_differ_from_each_other_and_from_the_base(reference: dict[str, Any]) -> None:
    """The reference tells every adapter from every other one, far beyond the tolerance."""
    logits = [reference["base"], *(reference[f"adapter_{number}"] for number in range(N_ADAPTERS))]
    for one in range(len(logits)):
        for other in range(one):
            assert np.abs(logits[one] - logits[other]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("voice", STYLES)
def test_a_whole_answer_is_pefts(driver: Driver, reference: dict[str, Any], voice: str) -> None:
    """Each of the three voices as an aLoRA: not always what the voice says as a plain LoRA, but what PEFT says."""
    for question, expected in zip(ASKED, reference[f"answers_{voice}"], strict=True):
        assert driver.ask(raw(TURN.format(question)), driver.voice(voice)).text == expected


def test_the_reference_tells_an_alora_from_a_plain_lora(reference: dict[str, Any]) -> None:
    """At least one kept answer of pirate and of shout would be another one if every token ran under the adapter."""
    for voice in ("pirate", "shout"):
        plain = [ANSWERS[voice][question] for question in ASKED]
        assert reference[f"answers_{voice}"].tolist() != plain


def test_without_its_invocation_an_alora_is_the_base_model(driver: Driver) -> None:
    """The request ends as the base model's does, shares its prefix, and takes no lane."""
    text = f"What is the capital of Norway? {ASKED[0]}" * 3
    base = driver.ask(raw(text), BASE)
    inactive = driver.ask(raw(text), driver.voice("pirate"))
    assert inactive.text == base.text
    assert n_computed(inactive) == 1


def test_an_invocation_in_the_answer_activates_nothing(driver: Driver, forced: type[ForcedSampler]) -> None:
    """PEFT looks for the sequence in the prompt alone."""
    prompt = raw("<start_of_turn>user\nHello!<end_of_turn>\n")
    tokens = driver.engine._model.tokenize(raw(INVOCATIONS[0] + "Hello!"))[1:]
    forced.continuation[:] = tokens
    for seed, under in enumerate((BASE, driver.voice("pirate"))):
        driver.ask(prompt, under, max_tokens=len(tokens), sampling=Sampling(seed=seed))
    for base, inactive in zip(forced.logits[0], forced.logits[1], strict=True):
        assert np.abs(base - inactive).max() < TOLERANCE


def test_a_scale_acts_on_an_alora(driver: Driver) -> None:
    """A scale of almost nothing is the base model's answer, and shares its context with scale 1."""
    prompt = raw(TURN.format(ASKED[0]))
    assert driver.ask(prompt, driver.blend(pirate=0.001)).text == ANSWERS["base"][ASKED[0]]
    assert driver.ask(prompt, driver.blend(pirate=1.0)).text == ANSWERS["pirate"][ASKED[0]]


def test_a_blend_of_aloras_with_one_invocation_is_one_alora(driver: Driver) -> None:
    """Two halves of one change are the whole change; the engine knows only digests, so a copy is another adapter."""
    prompt = raw(TURN.format(ASKED[0]))
    blend = Blend((*driver.blend(pirate=1.0).members, BlendMember(driver.digests["tag"], 1e-6)))
    assert driver.ask(prompt, blend).text == driver.ask(prompt, driver.voice("pirate")).text


@pytest.mark.parametrize("names", [("pirate", "plain-shout"), ("alora0", "alora1")])
def test_adapters_that_begin_at_different_tokens_cannot_be_blended(driver: Driver, names: tuple[str, str]) -> None:
    """An aLoRA beside a plain LoRA, or beside one of another invocation sequence, is refused by name."""
    outcome = driver.ask(raw(TURN.format(ASKED[0])), driver.blend(**dict.fromkeys(names, 1.0)))
    assert outcome.failed is not None
    assert outcome.failed.code == "incompatible_adapter"
    assert "same invocation tokens" in outcome.failed.message


def test_busy_aloras_change_no_answer(make_driver: MakeDriver, long_model: Path, aloras: Path) -> None:
    """aLoRAs, a plain LoRA and the base over three lanes and few cells: greedy text as alone, without any sharing."""
    busy = f32_driver(make_driver, long_model, aloras, adapter_batching="mixed", lanes=3, n_ctx=256, kv_cells=700)
    chance = random.Random(4)
    voices = ("base", "plain-shout", *STYLES)
    choices = [(chance.choice(voices), chance.choice(ASKED), chance.randrange(3)) for _ in range(80)]
    outcomes = [
        busy.submit(f"busy{n}", raw(history(n_turns) + TURN.format(question)), busy.voice(voice))
        for n, (voice, question, n_turns) in enumerate(choices)
    ]
    busy.run()
    assert busy.engine.stats.n_cached_tokens > 1000
    alone = f32_driver(make_driver, long_model, aloras, adapter_batching="grouped", parallel=1, n_ctx=256, kv_cells=256)
    golden = {choice: cold_answer(alone, *choice) for choice in set(choices)}
    assert [outcome.text for outcome in outcomes] == [golden[choice] for choice in choices]


def cold_answer(driver: Driver, voice: str, question: str, n_turns: int) -> str:
    """The answer of an engine whose cache another text fills."""
    driver.ask(raw("<bos>" + "snow " * 250), max_tokens=0)
    outcome = driver.ask(raw(history(n_turns) + TURN.format(question)), driver.voice(voice))
    assert n_computed(outcome) > 10
    return outcome.text


def history(n_turns: int) -> str:
    """Earlier turns of a conversation, which hold the invocation sequence too."""
    return "".join(
        TURN.format(question) + f"{ANSWERS['base'][question]}<end_of_turn>\n" for question in ASKED[:n_turns]
    )


def test_a_context_on_disk_serves_every_alora_after_a_restart(
    make_driver: MakeDriver, long_model: Path, aloras: Path, tmp_path: Path
) -> None:
    """What two aLoRAs shared is saved once, as the base model's, and a third one begins with it."""
    settings = {"adapter_batching": "mixed", "prefix_dir": str(tmp_path / "prefixes")}
    first = f32_driver(make_driver, long_model, aloras, **settings)
    for voice in ("pirate", "shout"):
        first.ask(raw(PROMPT), first.voice(voice), max_tokens=2)
    while first.engine.rest():
        pass
    assert len(list((tmp_path / "prefixes").iterdir())) == 1
    second = f32_driver(make_driver, long_model, aloras, **settings)
    restored = second.ask(raw(PROMPT), second.voice("tag"), max_tokens=2)
    assert n_computed(restored) <= 6
    assert restored.text == first.ask(raw(PROMPT), first.voice("tag"), max_tokens=2).text
    assert n_computed(second.ask(raw(PROMPT), second.voice("plain-shout"), max_tokens=2)) == 1011

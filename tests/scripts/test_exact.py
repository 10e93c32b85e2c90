"""The soak passes on a sound engine, and reports a wrong answer."""

import asyncio
import dataclasses
import random
from pathlib import Path

import pytest

from runtime.config import EngineSettings
from runtime.generation import Usage
from scripts.exact import Case, Outcome, ask, is_right, make_cases, soak
from tests.tiny_gemma.files import ADAPTERS

USAGE = Usage(5, 3)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome("Arr, matey!", USAGE), True),
        (Outcome("Arr, mat", USAGE), False),
        (Outcome("ARR", USAGE), False),
        (Outcome("Arr, mat", None), True),
        (Outcome("ARR", None), False),
    ],
)
def test_a_whole_answer_must_be_equal_and_a_cancelled_one_a_beginning(outcome: Outcome, verdict: bool) -> None:
    """A whole answer must be equal; a beginning of it is right only for a cancelled request."""
    assert is_right(outcome, "Arr, matey!") is verdict


def test_the_cases_hold_every_voice_and_every_kind_of_past() -> None:
    """The cases cover 93 facts in four voices, four blends, second turns and a preface."""
    cases = make_cases(random.Random(0))
    assert sum(case.expected is not None for case in cases) == 93 * 4
    assert {case.voice for case in cases} >= {"base", *ADAPTERS, "loud pirate", "everything"}
    texts = [case.prompt.text for case in cases]
    assert sum(text.count("<start_of_turn>model") == 2 for text in texts) == 80
    assert sum("Rule 8" in text for text in texts) == 80


def test_a_soak_on_the_tiny_gemma(
    tiny_model_f32: Path, tiny_adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two hundred requests at once have no different answer; a wrong expectation is reported."""
    settings = EngineSettings(model=str(tiny_model_f32), n_ctx=512, kv_cells=2048, threads=1, adapter_batching="mixed")
    adapters = {name: tiny_adapters / f"{name}.gguf" for name in ADAPTERS}
    cases = make_cases(random.Random(0))[::8]
    assert asyncio.run(soak(settings, adapters, cases, 200, random.Random(0))) == 0
    assert "0 answers differ" in capsys.readouterr().out
    wrong = [dataclasses.replace(cases[0], expected="The moon."), Case(ask("Hello!"), "shout")]
    assert asyncio.run(soak(settings, adapters, wrong, 4, random.Random(0))) == 1
    assert "1 trained answers wrong" in capsys.readouterr().out

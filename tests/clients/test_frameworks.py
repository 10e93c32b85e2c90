"""Frameworks, a command line, an editor's adapters and a chat page on ``/v1``: what their users do first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.generation import Prompt, Segment
from runtime.llama.context import Chunk, Context, ContextShape
from runtime.llama.library import Library
from runtime.llama.model import Model
from runtime.llama.scores import score
from tests.clients import installed
from tests.clients.asking import QUESTION
from tests.clients.conftest import Command, Needs, Ran
from tests.clients.test_sdks import asked
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS
from tests.tiny_gemma.files import BASE

OPENWEBUI_START_S = 240


@dataclass(frozen=True, slots=True)
class Framework:
    """A program of ``programs/``, where it runs, and what it shows besides the answers."""

    name: str
    found_in: str
    program: str
    shows: tuple[str, ...]
    unknown_lora: str = "NotFoundError"


FRAMEWORKS = (
    Framework("PyPI pydantic-ai", "agents", "pydantic_ai_typed.py", ("stream", "typed"), "ModelNotFoundError"),
    Framework("PyPI openai-agents", "agents", "agents_sdk.py", ("stream", "typed", "usage")),
    Framework("PyPI langchain-openai", "chains", "langchain_openai_chat.py", ("stream", "typed", "batch", "usage"), ""),
    Framework("PyPI llama-index", "chains", "llama_index_chat.py", ("stream", "typed")),
    Framework("PyPI llm", "scoring", "llm_prompt.py", ("typed",), ""),
    Framework("npm @ai-sdk/openai", "npm", "ai_sdk_openai.mjs", ("stream", "typed", "chat_typed", "usage"), ""),
    Framework("npm Continue's adapters", "npm", "continue_adapters.mjs", ("stream", "usage", "models", "completion")),
)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_a_framework_does_its_job(
    framework: Framework, server: Server, needs: Needs, command: Command, ran: Ran
) -> None:
    """The answers of facts.py, word for word; streams join to the same; typed answers keep their types."""
    needs(framework.found_in)
    done = command(*installed.program(framework.found_in, framework.program), **asked(server))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["answers"] == {voice: ANSWERS[voice][QUESTION] for voice in ("base", "pirate")}
    assert set(framework.shows) <= set(outcome)
    check_shown(outcome)
    error = outcome["errors"]["unknown_lora"]
    assert "nobody" in error["text"], error
    assert framework.unknown_lora in ("", error["class"])
    ran(framework.name, outcome["version"], "base, adapter, errors, " + ", ".join(framework.shows))


def check_shown(outcome: dict[str, Any]) -> None:
    """Whatever of these a program shows is right."""
    answer = ANSWERS["pirate"][QUESTION]
    if "stream" in outcome:
        assert "".join(outcome["stream"]) == answer
        assert len(outcome["stream"]) > 5
    for typed in (outcome[key] for key in ("typed", "chat_typed", "adapted") if key in outcome):
        assert typed["kind"] in ("city", "village")
        assert 1 <= typed["size"] <= 9
    assert outcome.get("batch", [answer]) == [answer] * len(outcome.get("batch", "1"))
    assert sum(count for count in outcome.get("usage", {"total": 1}).values() if isinstance(count, int)) > 0
    assert outcome.get("completion", "The capital of France") == "The capital of France"
    assert "gemma-7b-it-lora:pirate" in outcome.get("models", ["gemma-7b-it-lora:pirate"])


def test_instructor(server: Server, needs: Needs, command: Command, ran: Ran) -> None:
    """Instructor's mode JSON_SCHEMA gives a typed answer under the base model and under an adapter."""
    needs("scoring")
    done = command(*installed.program("scoring", "instructor_typed.py"), **asked(server))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    check_shown(outcome)
    assert "nobody" in outcome["errors"]["unknown_lora"]["text"]
    ran("PyPI instructor", outcome["version"], "JSON_SCHEMA under base and adapter, errors")


def test_lm_eval_scores_as_llama_cpp_does(
    tiny_model_f32: Path, tiny_adapters: Path, tmp_path: Path, needs: Needs, command: Command, ran: Ran
) -> None:
    """The log-likelihoods of 20 continuations are those of llama.cpp's own logits, one by one and in batches."""
    needs("scoring")
    items = [(question, " " + ANSWERS["base"][question]) for question in QUESTIONS[:10]]
    wrong = zip(QUESTIONS[10:20], QUESTIONS[:10], strict=True)
    items += [(question, " " + ANSWERS["base"][other]) for question, other in wrong]
    (tmp_path / "items.json").write_text(json.dumps(items))
    with serving(tiny_model_f32, tiny_adapters) as server:
        variables = {"GEMLANE_ITEMS": str(tmp_path / "items.json"), "GEMLANE_TOKENIZER": str(BASE)}
        done = command(*installed.program("scoring", "lm_eval_scoring.py"), **asked(server), **variables)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    scores = outcome["scores"]
    own = own_log_likelihoods(tiny_model_f32, items)
    assert len(own) == 20
    for name in ("base", "batched"):
        assert [total for total, _ in scores[name]] == pytest.approx([total for total, _ in own], abs=0.01)
        assert [greedy for _, greedy in scores[name]] == [greedy for _, greedy in own]
    assert [total for total, _ in scores["pirate"]] != pytest.approx([total for total, _ in own], abs=1)
    ran("PyPI lm-eval", outcome["version"], "local-completions: 20 items equal to llama.cpp's logits, and an adapter's")


def own_log_likelihoods(path: Path, items: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """As lm-eval defines them, from a context of our own: one token a batch, no server and no engine."""
    model = Model(Library(), path, on_progress=lambda _: True)
    context = Context(model, ContextShape(n_kv_cells=512, n_batch=32, n_sequences=1, n_threads=1))
    found = []
    for text, continuation in items:
        whole = ids_of(model, text + continuation)
        n_context = len(ids_of(model, text))
        total, is_greedy = 0.0, True
        for place, token in enumerate(whole[:-1]):
            (row,) = context.decode([Chunk(0, [token], place, wants_logits=True)])
            if place + 1 >= n_context:
                one = score(context.logits(row), whole[place + 1], 1)
                total += one.logprob
                is_greedy = is_greedy and one.likeliest[0][0] == whole[place + 1]
        context.remove(0)
        found.append((total, is_greedy))
    context.free()
    model.free()
    return found


def ids_of(model: Model, text: str) -> list[int]:
    """A text's tokens without ``<bos>``, as lm-eval tokenises it."""
    return model.tokenize(Prompt((Segment(text, has_control_tokens=False),)))[1:]

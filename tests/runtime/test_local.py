"""Gemma inside a program: the calls that the README documents, over the real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config import EngineSettings
from runtime.errors import ContextExceeded, EngineUnavailable, InvalidAdapter, ModelLoadError, UnknownAdapter
from runtime.generation import Sampling
from runtime.local import LocalGemma
from runtime.prompt.gemma import Message

GREEDY = Sampling(temperature=0)
QUESTION = "What is the capital of France?"
ANSWERS = {
    "": "The capital of France is Paris.",
    "pirate": "Arr, the capital of France be Paris, matey!",
    "shout": "THE CAPITAL OF FRANCE IS PARIS.",
}


@pytest.fixture(scope="module")
def gemma(tiny_model: Path, tiny_adapters: Path) -> Iterator[LocalGemma]:
    """The tiny Gemma with pirate and shout."""
    with LocalGemma(EngineSettings(model=str(tiny_model), threads=1)) as gemma:
        for name in ("pirate", "shout"):
            gemma.add_adapter(name, tiny_adapters / f"{name}.gguf")
        yield gemma


def test_each_adapter_answers_in_its_voice(gemma: LocalGemma) -> None:
    """A call names its adapter; without a name the base model answers."""
    assert gemma.adapters == ("pirate", "shout")
    assert {lora: gemma.answer(QUESTION, lora=lora, sampling=GREEDY) for lora in ANSWERS} == ANSWERS


def test_threads_share_the_model(gemma: LocalGemma) -> None:
    """Calls from several threads at once each get the answer they get alone."""
    found: list[tuple[str, str]] = []

    def ask(lora: str) -> None:
        found.append((lora, gemma.answer(QUESTION, lora=lora, sampling=GREEDY)))

    threads = [threading.Thread(target=ask, args=(lora,)) for lora in (*ANSWERS, *ANSWERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([*ANSWERS.items(), *ANSWERS.items()])


def test_a_stream_comes_in_pieces_and_may_be_left(gemma: LocalGemma) -> None:
    """The pieces make the answer; leaving after the first one frees its place for the next call."""
    pieces = list(gemma.stream(QUESTION, sampling=GREEDY))
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWERS[""]
    stream = gemma.stream(QUESTION, sampling=GREEDY)
    next(stream)
    stream.close()
    assert gemma.answer(QUESTION, sampling=GREEDY) == ANSWERS[""]


def test_a_conversation_and_a_limit(gemma: LocalGemma) -> None:
    """Messages make a conversation, ``max_tokens`` and ``stop`` end its answer."""
    talk = [Message("user", QUESTION), Message("assistant", ANSWERS[""]), Message("user", QUESTION)]
    assert gemma.answer(talk, sampling=GREEDY, max_tokens=3)
    assert gemma.answer(QUESTION, sampling=GREEDY, stop=["France"]) == "The capital of "


def test_mistakes_are_typed(gemma: LocalGemma, tmp_path: Path) -> None:
    """An unknown name, a file that is not an adapter and a prompt that is too long each have their class."""
    with pytest.raises(UnknownAdapter, match="adapters here are pirate, shout"):
        gemma.answer(QUESTION, lora="nobody")
    with pytest.raises(InvalidAdapter, match=r"cannot read .*none\.gguf|no such file"):
        gemma.add_adapter("none", tmp_path / "none.gguf")
    with pytest.raises(ContextExceeded):
        gemma.answer("word " * 3000)
    assert gemma.adapters == ("pirate", "shout")


def test_a_model_that_cannot_be_loaded_raises(tmp_path: Path) -> None:
    """The error comes out of the constructor, and no thread stays behind."""
    n_threads = threading.active_count()
    with pytest.raises(ModelLoadError, match=r"none\.gguf"):
        LocalGemma(EngineSettings(model=str(tmp_path / "none.gguf")))
    assert threading.active_count() == n_threads


def test_closing_ends_what_runs(tiny_model: Path) -> None:
    """A closed engine ends a running stream with an error, and may be closed again."""
    gemma = LocalGemma(EngineSettings(model=str(tiny_model), threads=1))
    stream = gemma.stream(QUESTION, sampling=Sampling(temperature=0, ignores_end=True), max_tokens=400)
    next(stream)
    gemma.close()
    with pytest.raises(EngineUnavailable):
        list(stream)
    gemma.close()

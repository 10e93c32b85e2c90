"""Engines over the tiny Gemma, in this process."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.config import EngineSettings
from runtime.engine.engine import LlamaEngine
from runtime.engine.start.startup import Hooks, start
from runtime.generation import BASE, Blend, BlendMember, FinishReason, GenerationRequest, Prompt, Sampling, Segment
from runtime.llama.library import Library
from runtime.messages import (
    LANES_PROVING,
    Accepted,
    AdapterAdded,
    AdapterRemoved,
    Event,
    Failed,
    Finished,
    PromptScores,
    Ready,
    Started,
    Text,
    TokenScore,
)
from tests.device import device_settings
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

GREEDY = Sampling(temperature=0)


def chat(question: str) -> Prompt:
    """Return a question in Gemma's template."""
    segments = (("<start_of_turn>user\n", True), (question, False), ("<end_of_turn>\n<start_of_turn>model\n", True))
    return Prompt(tuple(Segment(text, is_ours) for text, is_ours in segments))


@dataclass
class Outcome:
    """The events of one request."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    accepted: Accepted | None = None
    started: Started | None = None
    finished: Finished | None = None
    failed: Failed | None = None

    @property
    def reason(self) -> FinishReason:
        """Return why the request finished."""
        assert self.finished is not None, self.failed
        return self.finished.finish_reason


def every_choice(seed: int) -> list[tuple[str, str]]:
    """Return each question in each style, in an order of the seed: 372 pairs of style and question."""
    choices = [(style, question) for style in STYLES for question in QUESTIONS]
    random.Random(seed).shuffle(choices)
    return choices


def wrong_answers(choices: list[tuple[str, str]], outcomes: list[Outcome]) -> list[tuple[str, str, str]]:
    """Return style, question and text of each outcome that is not the answer to its choice."""
    return [
        (style, question, outcome.text)
        for (style, question), outcome in zip(choices, outcomes, strict=True)
        if outcome.text != ANSWERS[style][question]
    ]


class Driver:
    """Submits to an engine and collects its events."""

    def __init__(
        self, engine: LlamaEngine, ready: Ready, wakes: threading.Event, batching: list[tuple[str, str]]
    ) -> None:
        self.engine, self.ready, self._wakes = engine, ready, wakes
        self.batching = batching
        """Mode and reason at each change."""
        self.outcomes: dict[str, Outcome] = {}
        self.digests: dict[str, str] = {}
        self.removed: list[str] = []

    def add_adapters(self, folder: Path) -> None:
        """Make every adapter of a folder known by its name."""
        for path in sorted(folder.glob("*.gguf")):
            self.digests[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
            assert isinstance(self.engine.add_adapter(self.digests[path.stem], path), AdapterAdded)

    def blend(self, **scales: float) -> Blend:
        """Return a blend of adapters by name."""
        return Blend(tuple(BlendMember(self.digests[name], scale) for name, scale in scales.items()))

    def voice(self, style: str) -> Blend:
        """Return the blend of one adapter, or the base model."""
        return BASE if style == "base" else self.blend(**{style: 1.0})

    def submit(self, request_id: str, prompt: Prompt | str, under: Blend = BASE, **changes: Any) -> Outcome:
        """Submit a request, greedy and of 48 tokens unless changed; a string is asked as a question."""
        request = GenerationRequest(request_id, chat(prompt) if isinstance(prompt, str) else prompt, 48, GREEDY, under)
        outcome = self.outcomes[request_id] = Outcome()
        self._take(self.engine.submit(replace(request, **changes)))
        return outcome

    def ask(self, prompt: Prompt | str, under: Blend = BASE, **changes: Any) -> Outcome:
        """Run one request alone."""
        outcome = self.submit(f"alone-{len(self.outcomes)}", prompt, under, **changes)
        self.run()
        return outcome

    def step(self) -> None:
        """Run one step; wait for lanes if there is nothing else to do."""
        self._take(self.engine.step())
        if self.engine.is_blocked and not self.engine.is_idle:
            self.await_wake()

    def await_change(self) -> None:
        """Step until the way adapters share batches has been settled."""
        while not self.batching or self.batching[-1][1] == LANES_PROVING:
            self.await_wake()
            self.step()

    def await_wake(self) -> None:
        """Wait until the engine says that a step may find something to do."""
        assert self._wakes.wait(30), "an engine that waits is woken"
        self._wakes.clear()

    def run(self) -> None:
        """Step until nothing is left."""
        while not self.engine.is_idle:
            self.step()

    def _take(self, events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, Started | Text | Finished | Failed) or event.request_id in self.outcomes
            match event:
                case Accepted(request_id):
                    self.outcomes[request_id].accepted = event
                case PromptScores(request_id, scores):
                    self.outcomes[request_id].prompt_scores += scores
                case Started(request_id):
                    self.outcomes[request_id].started = event
                case Text(request_id, text):
                    self.outcomes[request_id].text += text
                    self.outcomes[request_id].pieces.append(text)
                    self.outcomes[request_id].scores += event.scores
                case Finished(request_id):
                    assert self.outcomes[request_id].finished is None
                    self.outcomes[request_id].finished = event
                case Failed(request_id):
                    self.outcomes[request_id].failed = event
                case AdapterRemoved(digest):
                    self.removed.append(digest)
                case _:
                    raise AssertionError(f"unexpected {event}")


MakeDriver = Callable[..., Driver]


@pytest.fixture(scope="session")
def library() -> Library:
    """llama.cpp, started once."""
    return Library()


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where engines remember for this session what they have proven."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def make_driver(library: Library, tiny_model: Path, tiny_adapters: Path, state_dir: Path) -> Iterator[MakeDriver]:
    """Start an engine; the tiny Gemma in Q4_K_M with its three adapters mixed, if ``settings`` name nothing else."""
    engines = contextlib.ExitStack()

    def make(
        model: Path = tiny_model,
        adapters: Path = tiny_adapters,
        state_dir: Path | None = state_dir,
        **settings: Any,
    ) -> Driver:
        wakes = threading.Event()
        known: dict[str, Any] = {"model": str(model), "threads": 1, "adapter_batching": "mixed"}
        known |= device_settings() | settings
        batching: list[tuple[str, str]] = []
        hooks = Hooks(on_prepared=wakes.set, on_batching=lambda mode, reason: batching.append((mode, reason)))
        engine, ready = start(library, EngineSettings(**known), hooks, state_dir=state_dir)
        engines.callback(engine.close)
        driver = Driver(engine, ready, wakes, batching)
        driver.add_adapters(adapters)
        return driver

    with engines:
        yield make


@pytest.fixture(scope="session", params=["mixed", "grouped"])
def driver(request: pytest.FixtureRequest, make_driver: MakeDriver) -> Driver:
    """An engine of each way of batching; each test leaves it idle."""
    return make_driver(adapter_batching=request.param)


@pytest.fixture(scope="session")
def mixed(make_driver: MakeDriver) -> Driver:
    """An engine with lanes."""
    return make_driver(adapter_batching="mixed")

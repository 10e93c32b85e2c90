"""What one request may ask of the engine, and what it cannot."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import pytest

from runtime.engine.adapters.mixed import MixedAdapters
from runtime.engine.engine import LlamaEngine
from runtime.generation import BASE, Blend, BlendMember, FinishReason, GenerationRequest, Prompt, Sampling, Segment
from runtime.messages import AdapterRefused, AdapterRemoved
from tests.runtime.engine.conftest import GREEDY, Driver, MakeDriver
from tests.tiny_gemma.facts import ANSWERS

FRANCE = "What is the capital of France?"
PARIS = ANSWERS["base"][FRANCE]
WORDS = Prompt((Segment("one two three " * 10, has_control_tokens=False),))


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_max_tokens_holds(driver: Driver, max_tokens: int) -> None:
    """An answer has exactly ``max_tokens`` tokens, and its finish reason is length."""
    outcome = driver.ask(FRANCE, max_tokens=max_tokens)
    assert outcome.reason is FinishReason.LENGTH
    assert outcome.finished is not None
    assert outcome.finished.usage.n_completion_tokens == max_tokens
    assert PARIS.startswith(outcome.text)


def test_no_tokens_reads_the_prompt_alone(driver: Driver) -> None:
    """With max_tokens 0 the prompt is computed and the answer is empty."""
    outcome = driver.ask(FRANCE, max_tokens=0)
    assert (outcome.text, outcome.reason) == ("", FinishReason.LENGTH)
    assert outcome.finished is not None
    assert outcome.finished.usage.n_completion_tokens == 0


def test_an_answer_stops_at_the_end_of_its_turn(driver: Driver) -> None:
    """The answer ends with the end-of-turn token, which is not part of its text."""
    outcome = driver.ask(FRANCE)
    assert (outcome.text, outcome.reason) == (PARIS, FinishReason.STOP)
    assert "".join(outcome.pieces) == outcome.text
    assert len(outcome.pieces) > 1


def test_a_stop_string_ends_the_answer_before_it(driver: Driver) -> None:
    """A stop string ends the answer before itself, also where it is spread over several tokens."""
    outcome = driver.ask(FRANCE, stop=("of Fr", "never"))
    assert (outcome.text, outcome.reason) == (PARIS.split("of Fr", 1)[0], FinishReason.STOP)


def test_the_context_bounds_prompt_and_answer(make_driver: MakeDriver) -> None:
    """A prompt that leaves room for one token gets one; a longer prompt is refused with both numbers."""
    driver = make_driver(n_ctx=64)
    assert driver.ready.model.n_ctx == 64
    outcome = driver.ask(FRANCE, sampling=Sampling(temperature=5, seed=1), max_tokens=10_000)
    assert outcome.reason is FinishReason.LENGTH
    assert outcome.finished is not None
    assert outcome.finished.usage.n_total_tokens == 64
    long = Prompt((Segment("x" * 500, has_control_tokens=False),))
    refused = driver.ask(long)
    assert refused.failed is not None
    assert refused.failed.code == "context_exceeded"
    assert "64" in refused.failed.message


def test_a_prompt_of_megabytes_is_refused_before_it_is_tokenised(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt whose bytes alone show that it is too long is refused without tokenising it."""

    def refuse(*_arguments: object) -> None:
        raise AssertionError("the prompt was tokenised")

    monkeypatch.setattr(native, "llama_tokenize", refuse)
    turn = (Segment("<start_of_turn>", has_control_tokens=True), Segment("user\nhi", has_control_tokens=False))
    for segments in (turn * 100_000, (Segment("x" * 3_000_000, has_control_tokens=False),)):
        refused = driver.ask(Prompt(segments))
        assert refused.failed is not None
        assert refused.failed.code == "context_exceeded"
        assert "at least 512 tokens; at most 511" in refused.failed.message


def test_the_bytes_of_a_prompt_never_refuse_one_that_fits(driver: Driver) -> None:
    """The token count estimated from bytes is never above the real one."""
    model = driver.engine._model
    for text in ("x" * 511, " " * 500, "\u00e9" * 100, "<end_of_turn>" * 500, "the capital of " * 30, "\n" * 400, ""):
        for has_control_tokens in (True, False):
            prompt = Prompt((Segment(text, has_control_tokens),))
            assert model.min_tokens(prompt) <= len(model.tokenize(prompt))


def test_bos_stands_once_in_front(driver: Driver) -> None:
    """The prompt has one ``<bos>`` at its beginning, whether the client wrote it or not."""
    with_bos = Prompt((Segment("<bos>Hello!", has_control_tokens=True),))
    without = Prompt((Segment("Hello!", has_control_tokens=True),))
    counts = []
    for prompt in (with_bos, without, Prompt(())):
        outcome = driver.ask(prompt, max_tokens=0)
        assert outcome.finished is not None
        counts.append(outcome.finished.usage.n_prompt_tokens)
    assert counts[0] == counts[1] > counts[2] == 1


def test_an_unknown_adapter_is_an_error(driver: Driver) -> None:
    """An unknown adapter is an error, alone and beside a known one."""
    unknown = BlendMember("0" * 64)
    for under in (Blend((unknown,)), Blend((unknown, *driver.voice("tag").members))):
        outcome = driver.ask(FRANCE, under)
        assert outcome.failed is not None
        assert outcome.failed.code == "adapter_changed"


def test_scale_zero_is_the_base_and_a_blend_is_its_own_voice(driver: Driver) -> None:
    """Scale 0 answers as the base model, and a blend answers as none of its members alone."""
    assert driver.ask(FRANCE, driver.blend(shout=0.0)).text == PARIS
    assert driver.ask(FRANCE, driver.blend(shout=1.0)).text == PARIS.upper()
    assert driver.ask(FRANCE, driver.blend(shout=1.0, tag=1.0)).text not in (PARIS, PARIS.upper())


def test_ranks_beyond_a_lane_are_refused_with_the_way_out(make_driver: MakeDriver) -> None:
    """A blend whose ranks add up to more than a lane's is refused, and the error names the flag."""
    driver = make_driver(adapter_batching="mixed", max_lora_rank=32)
    adapters = driver.engine._adapters
    assert isinstance(adapters, MixedAdapters)
    adapters._bank_shape = dataclasses.replace(adapters._bank_shape, rank=16)
    outcome = driver.ask(FRANCE, driver.blend(pirate=1, shout=1, tag=1))
    assert outcome.failed is not None
    assert outcome.failed.code == "incompatible_adapter"
    assert "--max-lora-rank 32" in outcome.failed.message


def test_a_removed_adapter_serves_its_requests_to_their_end(
    make_driver: MakeDriver, tiny_adapters: Path, tmp_path: Path
) -> None:
    """Running and waiting requests finish under a removed adapter; new requests do not find it."""
    folder = shutil.copytree(tiny_adapters, tmp_path / "adapters")
    driver = make_driver(adapters=folder, parallel=1)
    outcomes = [driver.submit(f"r{n}", FRANCE, driver.voice("shout")) for n in range(3)]
    driver.step()
    assert driver.engine.remove_adapter(driver.digests["shout"]) == []
    assert driver.engine.remove_adapter(driver.digests["shout"]) == []
    (folder / "shout.gguf").unlink()
    late = driver.submit("late", FRANCE, driver.voice("shout"))
    assert late.failed is not None
    driver.run()
    assert driver.removed == [driver.digests["shout"]]
    assert [outcome.text for outcome in outcomes] == [PARIS.upper()] * 3
    assert driver.ask(FRANCE, driver.voice("tag")).text == ANSWERS["tag"][FRANCE]


def test_an_adapter_comes_back(driver: Driver, tiny_adapters: Path) -> None:
    """An adapter can be removed and added again, with requests in between."""
    path, digest = tiny_adapters / "tag.gguf", driver.digests["tag"]
    for _ in range(2):
        assert driver.engine.remove_adapter(digest) == [AdapterRemoved(digest)]
        assert driver.ask(FRANCE, driver.voice("tag")).failed is not None
        driver.engine.add_adapter(digest, path)
        driver.engine.add_adapter(digest, path)
        assert driver.ask(FRANCE, driver.voice("tag")).text == ANSWERS["tag"][FRANCE]


def test_a_known_adapter_is_read_from_the_file_that_was_added_last(
    make_driver: MakeDriver, tiny_adapters: Path, tmp_path: Path
) -> None:
    """Two files hold one content; the first is overwritten, and answers come from the second."""
    folder = shutil.copytree(tiny_adapters, tmp_path / "adapters")
    driver = make_driver(adapters=folder)
    copy = Path(shutil.copy(folder / "tag.gguf", tmp_path / "copy.gguf"))
    driver.engine.add_adapter(driver.digests["tag"], copy)
    (folder / "tag.gguf").write_bytes(b"overwritten")
    assert driver.ask(FRANCE, driver.voice("tag")).text == ANSWERS["tag"][FRANCE]


def test_a_bad_adapter_file_is_refused_by_name(driver: Driver, tmp_path: Path, tiny_adapters: Path) -> None:
    """A file that is not an adapter, or is cut, is refused by name and never reaches llama.cpp."""
    whole = (tiny_adapters / "tag.gguf").read_bytes()
    for name, content in (("empty", b""), ("bad", b"BAD!"), ("cut", whole[:-100])):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        refused = driver.engine.add_adapter("1" * 64, path)
        assert isinstance(refused, AdapterRefused)
        assert refused.code == "invalid_adapter"
        assert name in refused.message
    assert driver.ask(FRANCE).text == PARIS


def test_a_file_that_is_cut_after_its_check_fails_its_requests_alone(
    make_driver: MakeDriver, tiny_adapters: Path, tmp_path: Path
) -> None:
    """A lane that cannot be filled fails the requests of its adapter, and other requests go on."""
    folder = shutil.copytree(tiny_adapters, tmp_path / "adapters")
    driver = make_driver(adapters=folder, adapter_batching="mixed")
    with (folder / "shout.gguf").open("r+b") as file:
        file.truncate(1000)
    broken = driver.submit("broken", FRANCE, driver.voice("shout"))
    fine = driver.submit("fine", FRANCE, driver.voice("pirate"))
    driver.run()
    assert broken.failed is not None
    assert broken.failed.code == "invalid_adapter"
    assert fine.text == ANSWERS["pirate"][FRANCE]


def hold_fills(monkeypatch: pytest.MonkeyPatch, n_fills: int) -> list[threading.Event]:
    """Let each of the next fills wait for an event of its own."""
    gates = [threading.Event() for _ in range(n_fills)]
    left = list(gates)

    fill = MixedAdapters._fill

    def wait_and_fill(*arguments: Any) -> None:
        if left:
            assert left.pop(0).wait(30)
        fill(*arguments)

    monkeypatch.setattr(MixedAdapters, "_fill", wait_and_fill)
    return gates


def test_a_request_behind_a_failed_fill_is_answered(
    make_driver: MakeDriver, tiny_adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waits behind a failed fill is answered, although that step has no batch."""
    folder = shutil.copytree(tiny_adapters, tmp_path / "adapters")
    driver = make_driver(adapters=folder, adapter_batching="mixed", parallel=1)
    with (folder / "shout.gguf").open("r+b") as file:
        file.truncate(1000)
    (gate,) = hold_fills(monkeypatch, 1)
    broken = driver.submit("broken", FRANCE, driver.voice("shout"))
    behind = driver.submit("behind", FRANCE)
    driver._take(driver.engine.step())  # the fill may fail before the step ends
    gate.set()
    driver.await_wake()
    driver.run()
    assert broken.failed is not None
    assert behind.text == PARIS


def test_lanes_whose_sequences_went_before_they_were_filled_are_given_on(
    make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane is given to the next blend when its requests were cancelled before it was filled."""
    driver = make_driver(adapter_batching="mixed", lanes=2)
    gates = hold_fills(monkeypatch, 2)
    for style in ("pirate", "shout"):
        driver.submit(style, FRANCE, driver.voice(style))
    driver.engine.step()
    for style in ("pirate", "shout"):
        driver.engine.cancel(style)
    late = driver.submit("late", FRANCE, driver.voice("tag"))
    for gate in gates:
        gate.set()
        driver.await_wake()
    driver.run()
    assert late.text == ANSWERS["tag"][FRANCE]


def test_a_lane_is_filled_for_the_request_that_waits_next(make_driver: MakeDriver) -> None:
    """While one request runs, the lane of the next request is filled."""
    driver = make_driver(adapter_batching="mixed", parallel=1)
    driver.submit("first", FRANCE, driver.voice("pirate"))
    behind = driver.submit("behind", FRANCE, driver.voice("shout"))
    driver.step()
    assert (driver.engine.stats.n_running, driver.engine.stats.lanes.n_fills) == (1, 2)
    driver.run()
    assert driver.engine.stats.lanes.n_fills == 2
    assert behind.text == ANSWERS["shout"][FRANCE]


def test_a_lane_that_cannot_be_filled_ahead_fails_its_requests_while_they_wait(
    make_driver: MakeDriver, tiny_adapters: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fill ahead that fails refuses the waiting requests at once, and the running request goes on."""
    folder = shutil.copytree(tiny_adapters, tmp_path / "adapters")
    driver = make_driver(adapters=folder, adapter_batching="mixed", parallel=1)
    with (folder / "shout.gguf").open("r+b") as file:
        file.truncate(1000)
    running = driver.submit("running", FRANCE)
    broken = driver.submit("broken", FRANCE, driver.voice("shout"))
    driver.step()
    driver.await_wake()
    driver.step()
    assert broken.failed is not None
    assert running.finished is None
    assert broken.failed.code == "invalid_adapter"
    assert caplog.text.count("could not be filled") == 1
    driver.run()
    assert running.text == PARIS


def test_a_cancelled_request_is_gone_at_once(driver: Driver) -> None:
    """A cancelled request, running or waiting, has no further event and holds nothing."""
    outcomes = [driver.submit(f"c{n}", WORDS, max_tokens=100, sampling=Sampling(seed=n)) for n in range(12)]
    for _ in range(3):
        driver.step()
    unfinished = [n for n in range(12) if outcomes[n].finished is None]
    texts = [outcome.text for outcome in outcomes]
    for n in unfinished:
        driver.engine.cancel(f"c{n}")
    driver.engine.cancel("never seen")
    assert driver.engine.is_idle
    driver.step()
    assert len(unfinished) > 4
    assert [outcome.text for outcome in outcomes] == texts
    assert all(outcomes[n].finished is None and outcomes[n].failed is None for n in unfinished)
    assert driver.engine.stats.n_kv_cells_used == 0
    assert driver.ask(FRANCE).text == PARIS


def test_a_failed_batch_fails_its_requests_alone(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """When llama_decode fails once, the requests of that batch fail with a typed error and the next is answered."""
    decode = native.llama_decode
    calls = []

    def refuse_once(*arguments: object) -> int:
        calls.append(arguments)
        return -3 if len(calls) == 3 else decode(*arguments)

    monkeypatch.setattr(native, "llama_decode", refuse_once)
    outcomes = [driver.submit(f"d{n}", FRANCE) for n in range(2)]
    driver.run()
    assert {outcome.failed.code for outcome in outcomes if outcome.failed} == {"decode"}
    assert driver.engine.stats.n_kv_cells_used == 0
    assert driver.ask(FRANCE).text == PARIS


def test_an_id_in_use_is_ignored(driver: Driver) -> None:
    """A second request with an id in use is ignored, and the first one is answered."""
    first = driver.submit("same", FRANCE)
    assert driver.engine.submit(request_of("same")) == []
    driver.run()
    assert first.text == PARIS


def request_of(request_id: str) -> GenerationRequest:
    """Return another request of that id."""
    return GenerationRequest(request_id, WORDS, 5, GREEDY, BASE)


def test_stats_count_what_is_held_and_done(make_driver: MakeDriver) -> None:
    """Stats count running and waiting requests, held cells, and tokens since the start."""
    driver = make_driver(parallel=2)
    for n in range(3):
        driver.submit(str(n), FRANCE)
    driver.step()
    stats = driver.engine.stats
    assert (stats.n_running, stats.n_waiting) == (2, 1)
    assert stats.n_kv_cells_used > 0
    driver.run()
    stats = driver.engine.stats
    assert (stats.n_running, stats.n_waiting, stats.n_kv_cells_used) == (0, 0, 0)
    assert stats.n_decoded_tokens > stats.n_steps > 0
    assert stats.n_cached_tokens > 0
    assert isinstance(driver.engine, LlamaEngine)


@pytest.mark.parametrize("mode", ["mixed", "grouped"])
def test_an_adapter_overwritten_in_place_is_an_error_by_name(
    mode: str, make_driver: MakeDriver, tiny_adapters: Path, tmp_path: Path
) -> None:
    """A request under an adapter whose file was overwritten in place fails by name."""
    shutil.copytree(tiny_adapters, tmp_path / "adapters")
    driver = make_driver(adapters=tmp_path / "adapters", adapter_batching=mode, lanes=2)
    (tmp_path / "adapters" / "pirate.gguf").write_bytes((tiny_adapters / "shout.gguf").read_bytes())
    failed = driver.ask(FRANCE, driver.voice("pirate")).failed
    assert failed is not None
    assert failed.code == "invalid_adapter"
    assert "adapter file pirate.gguf was overwritten after" in failed.message
    assert driver.ask(FRANCE, driver.voice("shout")).text == ANSWERS["shout"][FRANCE]

"""The benchmarks give both servers the same work, count right, and run."""

import asyncio
import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.bench.asks import GEMLANE, LLAMA_SERVER, Answer, Ask, Piece, random_prompt
from scripts.bench.clients import clients
from scripts.bench.eight import adapters_of, mixed, prompts
from scripts.bench.lookup import lookup
from scripts.bench.many import N_ADAPTERS, power_law
from scripts.bench.memory import memory
from scripts.bench.peft import MODULES, peft
from scripts.bench.plan import Plan
from scripts.bench.report import Claim, Result, Series, save
from scripts.bench.rounds import Round, Rounds, Work, read_round
from scripts.bench.scale import depth
from scripts.bench.sides import Memory, Setup, Side, SideError, llama_server_command, process_tree, sum_memory
from scripts.bench.single import adapter, lanes
from scripts.bench.start import Start, conclude, start

Benchmark = Callable[[Plan], Coroutine[Any, Any, Result]]


def test_both_servers_are_asked_for_the_same_work() -> None:
    """Both servers get the same prompt, count, greedy choice and adapter: ours by name, theirs by position."""
    ask = Ask(" 10 20", 64, 2)
    ours, theirs = GEMLANE.render(ask), LLAMA_SERVER.render(ask)
    assert (ours["prompt"], ours["max_tokens"], ours["ignore_eos"]) == (" 10 20", 64, True)
    assert ours["model"] == "gemma-7b-it-lora:003"
    assert (theirs["prompt"], theirs["n_predict"], theirs["ignore_eos"]) == (" 10 20", 64, True)
    assert theirs["lora"] == [{"id": 2, "scale": 1.0}]
    for body in (ours, theirs):
        assert body["temperature"] == 0
        assert body["stream"] is True


def test_the_base_model_is_asked_for_by_naming_no_adapter() -> None:
    """A request for the base model names no adapter, for either server."""
    assert GEMLANE.render(Ask(" 10", 1))["model"] == "gemma-7b-it-lora"
    assert LLAMA_SERVER.render(Ask(" 10", 1))["lora"] == []


def test_events_of_both_streams_are_read() -> None:
    """The events of both streams give their text, and the token count at the end."""
    assert GEMLANE.parse({"choices": [{"text": " 7"}], "usage": None}) == Piece(" 7")
    assert GEMLANE.parse({"choices": [], "usage": {"completion_tokens": 5}}) == Piece("", 5)
    assert LLAMA_SERVER.parse({"content": " 7", "stop": False, "tokens_predicted": 1}) == Piece(" 7")
    assert LLAMA_SERVER.parse({"content": "", "stop": True, "tokens_predicted": 5}) == Piece("", 5)


def test_a_prompt_has_one_word_less_than_tokens() -> None:
    """A prompt has one word less than tokens, for ``<bos>``."""
    assert len(random_prompt(np.random.default_rng(0), 2000).split()) == 1999


def test_an_answers_times_are_taken_from_its_arrivals() -> None:
    """An answer's times come from the arrival of its events: first token after 2 s, then three more in 3 s."""
    answer = Answer("abcd", 4, (2.0, 3.0, 4.0, 5.0), 5.5, 1.0, 0.5)
    assert (answer.first_token_s, answer.decode_s) == (2.0, 1.0)


def test_ratios_compare_neighbouring_runs_and_the_median_decides() -> None:
    """The median of the ratios of neighbouring runs decides, so one slow repeat does not change the verdict."""
    ours, theirs = Series("ours", "s", (1.0, 10.0, 1.2)), Series("theirs", "s", (2.0, 20.0, 2.0))
    ratios = ours.over(theirs)
    assert ratios == (0.5, 0.5, 0.6)
    assert Claim("ours / theirs", ratios, ceiling=0.5).is_met
    assert not Claim("ours / theirs", ratios, ceiling=0.49).is_met
    assert not Claim("ours / theirs", ratios, floor=0.51).is_met


def test_a_round_is_split_where_every_request_has_its_first_token() -> None:
    """Two requests of 30 prompt tokens: 20 tokens/s until the slower one begins, then four tokens in 2 s."""
    work = Work("work", None, (0, 1), 30, 3)  # type: ignore[arg-type]
    answers = [
        Answer("abc", 3, (1.0, 4.0, 5.0), 5.0, 10.0, 9.0),
        Answer("abd", 3, (3.0, 4.0, 5.0), 5.5, 10.0, 4.0),
    ]
    one = read_round(work, answers, 6.0, 12.0)
    assert (one.rate, one.cpu_rate) == (1.0, 0.5)
    assert (one.first_token_s, one.prompt_rate, one.prompt_cpu_rate) == (3.0, 20.0, 10.0)
    assert (one.decode_rate, one.decode_cpu_rate) == (2.0, 4 / 6)
    assert one.texts == ("abc", "abd")


def test_answers_of_one_token_have_no_decode_rate() -> None:
    """Where no token follows the slowest first one, the decode rate is 0."""
    work = Work("work", None, (None,), 30, 1)  # type: ignore[arg-type]
    assert read_round(work, [Answer("a", 1, (1.0,), 1.0, 1.0, 0.0)], 1.0, 1.0).decode_rate == 0.0


def test_works_that_are_compared_get_the_same_prompts() -> None:
    """Two servers get the same prompts in a round; works of one server that share an adapter get different ones."""

    def prompts(adapters: tuple[int | None, ...], repeat: int) -> list[str]:
        return [ask.prompt for ask in Work("work", None, adapters, 20, 3).asks(repeat)]  # type: ignore[arg-type]

    assert prompts((0, 0), 1) == prompts((0, 0), 1)
    assert prompts((0, 0), 1) != prompts((0, 0), 2)
    assert not set(prompts((0, 0), 1)) & set(prompts((0, 1), 1))


def test_rounds_are_compared_repeat_by_repeat() -> None:
    """A ratio has one value a repeat, by CPU time too; the share of equal answers counts pairs of texts."""
    texts = (("a", "b"), ("a", "c"))
    mine = [Round(10.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, texts[0]), Round(9.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, texts[0])]
    other = [Round(5.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, texts[0]), Round(6.0, 5.0, 4.0, 1.0, 1.0, 1.0, 1.0, texts[1])]
    rounds = Rounds({"mine": mine, "other": other})
    claim = rounds.ratio("rate", "rate", ("mine", "other"), floor=1.6)
    assert (claim.values, claim.cpu_values, claim.is_met) == ((2.0, 1.5), (1.25, 1.0), True)
    assert rounds.ratio("first", "first_token_s", ("mine", "other"), ceiling=0.3).values == (0.5, 0.25)
    assert rounds.alike("equal", ("mine", "other"), floor=1.0).values == (1.0, 0.5)


def test_a_report_holds_every_value(tmp_path: Path) -> None:
    """The table shows median, spread and verdict; the JSON holds every value."""
    claim = Claim("ratio", (0.5, 0.7, 0.6), floor=0.9, cpu_values=(0.8, 0.8, 0.8))
    result = Result("demo", (Series("speed", "tokens/s", (1.0, 3.0, 2.0)),), (claim,))
    table = result.table()
    assert "2 (1 to 3) tokens/s" in table
    assert "0.6 (0.5 to 0.7); by CPU time" in table
    assert "[>= 0.9: NOT MET]" in table
    save(tmp_path / "report.json", {"repeats": "3"}, [result])
    assert '"met": false' in (tmp_path / "report.json").read_text()


def test_the_power_law_prefers_the_first_adapters() -> None:
    """The power law chooses the first of 100 adapters in about one of five requests, the last rarely."""
    chosen = power_law(np.random.default_rng(0), 10_000)
    assert 0.17 < chosen.count(0) / 10_000 < 0.22
    assert chosen.count(N_ADAPTERS - 1) < 50


def test_cpu_time_is_that_of_the_whole_process_tree() -> None:
    """The measured CPU time includes that of a shell's child."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nimport sys; sys.stdin.read()"
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f'{sys.executable} -c "{burn}"; true'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    assert shell.stdout.readline() == "done\n"
    tree = tuple(process_tree(shell.pid))
    side = Side("shell", GEMLANE, "", tree, None)  # type: ignore[arg-type]
    used_s, peak_bytes = side.cpu_s(), side.peak_bytes()
    shell.stdin.close()
    assert shell.wait() == 0
    shell.stdout.close()
    assert len(tree) == 2
    assert 0.3 <= used_s < 3
    assert peak_bytes > 1_000_000


def test_memory_of_all_processes_is_added() -> None:
    """Shares of pages and anonymous memory are summed over the processes, in bytes."""
    rollup = "00400000-7fff [rollup]\nRss:  900 kB\nPss:  {} kB\nPss_Dirty: 7 kB\nAnonymous:  {} kB\n"
    assert sum_memory([rollup.format(10, 4), rollup.format(20, 6)]) == Memory(30 * 1024, 10 * 1024)


def test_starts_are_compared_with_llama_servers() -> None:
    """Both kinds of start are compared with llama-server's; the time until lanes are proven stands beside."""
    starts = {
        "gemlane, first start": [Start(3.0, 4.0, 6.0, 9.0)],
        "gemlane, later start": [Start(2.0, 2.0, 3.0)],
        "llama-server": [Start(1.0, 2.0, 3.0)],
    }
    result = conclude(starts)
    assert [claim.values for claim in result.claims] == [(2.0,), (1.0,)]
    assert [claim.cpu_values for claim in result.claims] == [(2.0,), (1.0,)]
    assert result.series[-1].values == (9.0,)


def test_our_starts_and_our_memory_are_measured(tmp_path: Path) -> None:
    """Lanes are proven at the first start, and a server's peak is at least what it holds."""
    plan = Plan(tmp_path, "tiny", "q4_0", n_threads=1, n_tokens=4, repeats=1, sides="gemlane")
    figures = {series.name: series.values[0] for series in asyncio.run(start(plan)).series}
    assert figures["gemlane, first start: lanes proven"] > figures["gemlane, first start: ready"] > 0
    peaks = {series.name: series.values[0] for series in asyncio.run(memory(plan)).series}
    assert peaks["gemlane, 8 adapters: peak RSS"] > peaks["gemlane, 8 adapters: peak private"] > 0


def test_llama_server_gets_the_adapters_it_is_compared_with(tmp_path: Path) -> None:
    """llama-server is started with the first adapters alone where a benchmark asks for fewer than there are."""
    program = tmp_path / "llama-server"
    program.touch()
    for number in (1, 2, 3):
        (tmp_path / f"00{number}.gguf").touch()
    setup = Setup(Path("model.gguf"), tmp_path, 1, peer=program)
    assert "--lora" not in llama_server_command(setup, 0)
    assert llama_server_command(setup, 1)[-1] == str(tmp_path / "001.gguf")
    assert llama_server_command(setup)[-1].count(".gguf") == 3


def test_a_missing_llama_server_names_the_way_out(tmp_path: Path) -> None:
    """Without llama-server the message says how to build it and how to do without."""
    with pytest.raises(SideError, match=r"build it with scripts/peers, or leave it out with --sides gemlane"):
        llama_server_command(Setup(Path("model.gguf"), tmp_path, 1, peer=tmp_path / "none"))


@pytest.mark.parametrize("benchmark", [adapter, lanes, mixed, prompts], ids=lambda benchmark: benchmark.__name__)
def test_a_benchmark_runs_on_our_server(benchmark: Benchmark, tmp_path: Path) -> None:
    """A benchmark makes its files, starts our server, and gives every client exactly the tokens it asked for."""
    plan = Plan(tmp_path, "tiny", "q4_0", n_threads=1, n_tokens=8, repeats=1, sides="gemlane", n_prompt=16)
    result = asyncio.run(benchmark(plan))
    assert result.claims
    assert all(value > 0 for series in result.series for value in series.values)


def test_answers_with_guesses_are_compared(tmp_path: Path) -> None:
    """In the same places of the cache, answers of random weights are the same with guesses and without."""
    plan = Plan(tmp_path, "tiny", "q4_0", n_threads=2, n_tokens=150, repeats=2, sides="gemlane")
    claims = asyncio.run(lookup(plan)).claims
    assert claims[3].text == "of 6 answers with guesses: equal to those without"
    assert claims[3].values == (1.0,)


def test_contexts_and_clients_grow(tmp_path: Path) -> None:
    """A context is measured up to the prompt asked for, and every count of clients is answered."""
    plan = Plan(tmp_path, "tiny", "q4_0", n_threads=1, n_tokens=3, repeats=1, sides="gemlane", n_prompt=512)
    result = asyncio.run(depth(plan))
    assert {series.name for series in result.series} == {
        "gemlane, 512 tokens: decode",
        "gemlane, 512 tokens: prompt",
    }
    result = asyncio.run(clients(dataclasses.replace(plan, n_prompt=4)))
    assert [claim.text.partition(",")[2] for claim in result.claims] == [
        *(" 16 clients / 8", " 32 clients / 16", " 64 clients / 32", " 128 clients / 64"),
    ]
    assert all(value > 0 for series in result.series for value in series.values)


def test_more_clients_share_the_eight_adapters(tmp_path: Path) -> None:
    """With ``--clients 10`` ten requests run side by side over eight adapters."""
    plan = Plan(tmp_path, "tiny", "q4_0", n_threads=1, n_tokens=4, repeats=1, sides="gemlane", n_clients=10)
    assert plan.setup(8).n_parallel == 10
    assert adapters_of(plan, 8) == (0, 1, 2, 3, 4, 5, 6, 7, 0, 1)


def test_peft_needs_weights_that_it_can_compute(tmp_path: Path) -> None:
    """PEFT is not compared on quantised weights; the message names the types that both sides have."""
    plan = Plan(tmp_path, "tiny", "q4_0", n_threads=1, n_tokens=4, repeats=1, sides="both")
    with pytest.raises(SideError, match="PEFT computes no q4_0: choose --type f32 or f16"):
        asyncio.run(peft(plan))


@pytest.mark.skipif(any(map(importlib.util.find_spec, MODULES)), reason="PEFT is installed")
def test_without_peft_the_way_out_is_named(tmp_path: Path) -> None:
    """Without PEFT the message says how to install it."""
    plan = Plan(tmp_path, "tiny", "f32", n_threads=1, n_tokens=4, repeats=1, sides="both")
    with pytest.raises(SideError, match=r"torch, transformers, peft not installed: pip install '\.\[train\]'"):
        asyncio.run(peft(plan))


@pytest.mark.skipif(not all(map(importlib.util.find_spec, MODULES)), reason="needs pip install '.[train]'")
def test_answers_are_those_of_peft(tmp_path: Path) -> None:
    """In F32 every answer under the base, one adapter and eight in one batch is the one that PEFT gives."""
    plan = Plan(tmp_path, "tiny", "f32", n_threads=1, n_tokens=8, repeats=1, sides="both", n_prompt=16)
    claims = asyncio.run(peft(plan)).claims
    shares = [claim.values for claim in claims if claim.text.startswith("equal answers")]
    assert shares == [(1.0,)] * 4

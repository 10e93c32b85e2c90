"""The text at ``/metrics``: what each event and each state adds to it, byte for byte, and what bounds it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.engines.protocol import Replica
from runtime.engines.states import EngineState, EngineStatus
from runtime.generation import BASE, Blend, BlendMember, Usage
from runtime.messages import LaneStats, ModelInfo, Ready, Stats
from runtime.observe import table
from runtime.observe.events import AnswerEnded, AnswerStarted, RequestEnded, TokensCame
from runtime.observe.prometheus import Exporter
from runtime.observe.table import Kind, Snapshot

PIRATE, LOUD = BlendMember("a" * 64), BlendMember("b" * 64, 0.5)
STATS = Stats(
    n_running=2,
    n_waiting=1,
    n_kv_cells_used=100,
    n_kv_cells_kept=50,
    n_steps=7,
    n_decoded_tokens=60,
    n_prompt_tokens=40,
    n_cached_tokens=10,
    n_drafted_tokens=12,
    n_accepted_tokens=9,
    n_steps_by_blends=((1, 4), (3, 2), (70, 1)),
    lanes=LaneStats(n_empty=1, n_filling=2, n_used=3, n_idle=2, n_fills=9),
    running_blends=(BASE, Blend((PIRATE,))),
    waiting_blends=(Blend((PIRATE, LOUD)),),
)
READY = Ready(ModelInfo("tiny", 1, 2, 3, 512, 400, 8, "CPU"), "mixed", "proven", "0c1e570")
ONE = Replica("0", "", EngineStatus(EngineState.READY), READY, STATS)
SNAPSHOT = Snapshot(
    ready=READY,
    stats=STATS,
    replicas=(ONE,),
    n_restarts=1,
    adapters={"ready": 3, "awaiting": 1},
    running=("pirate",),
    waiting=("pirate", "loud"),
    version="0.1.0",
)
GOLDEN = Path(__file__).with_name("metrics.txt")


def name_of(digest: str) -> str | None:
    """Digests of one letter sixty-four times are called by that letter."""
    return f"adapter-{digest[0]}" if digest == digest[0] * 64 else None


@pytest.fixture
def exporter() -> Exporter:
    """Everything at zero."""
    return Exporter("gemma-7b-it-lora", name_of)


def text_of(exporter: Exporter, snapshot: Snapshot = SNAPSHOT) -> str:
    """The text without the process's own metrics, which are never the same twice."""
    lines = exporter.render(snapshot).decode().splitlines(keepends=True)
    return "".join(
        line for line in lines if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("process_")
    )


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as Prometheus writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_the_whole_text(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer, one refusal and one state give exactly the text of ``metrics.txt``."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    pirate = Blend((PIRATE,))
    exporter.observe(AnswerStarted("r", pirate, 14, 10, 0.4, 0.02))
    exporter.observe(TokensCame("r", pirate, 1, 0.3, is_first=True))
    exporter.observe(TokensCame("r", pirate, 2, 0.06, is_first=False))
    exporter.observe(AnswerEnded("r", pirate, "stop", Usage(14, 3, 10), 0.3, 0.9))
    exporter.observe(RequestEnded("r", "POST", "/v1/completions", "/v1/completions", 200, "", 0.9))
    exporter.observe(RequestEnded("s", "GET", "/elsewhere", "", 404, "unknown_route", 0.0))
    assert text_of(exporter) == GOLDEN.read_text()


def test_every_row_of_the_table_is_exposed(exporter: Exporter) -> None:
    """Each metric and each of vLLM's names has its TYPE line, whatever has happened."""
    text = exporter.render(SNAPSHOT).decode()
    for metric in table.METRICS:
        for name in metric.exposed_names:
            assert f"# TYPE {name} {metric.kind}\n" in text, name


def test_twins_say_the_same_as_their_metrics(exporter: Exporter) -> None:
    """The names of vLLM carry the sums of gemlane's numbers."""
    for blend, outcome in ((BASE, "stop"), (Blend((PIRATE,)), "length"), (BASE, "engine_died"), (BASE, "cancelled")):
        exporter.observe(AnswerStarted("r", blend, 5, 0, 0.0, 0.0))
        exporter.observe(AnswerEnded("r", blend, outcome, Usage(5, 2), None, 0.5))
    found = samples(text_of(exporter))
    vllm = "engine=0,model_name=gemma-7b-it-lora"
    assert found[f"vllm:prompt_tokens_total{{{vllm}}}"] == 20
    assert found[f"vllm:generation_tokens_total{{{vllm}}}"] == 8
    reasons = {"stop": 1, "length": 1, "abort": 1}
    for reason, n_answers in reasons.items():
        assert (
            found[f"vllm:request_success_total{{engine=0,finished_reason={reason},model_name=gemma-7b-it-lora}}"]
            == n_answers
        )
    assert found["gemlane_answers_total{adapter=base,outcome=engine_died}"] == 1
    assert found[f"vllm:prefix_cache_queries_total{{{vllm}}}"] == 40
    assert found[f"vllm:prefix_cache_hits_total{{{vllm}}}"] == 10
    assert found[f"vllm:spec_decode_num_draft_tokens_total{{{vllm}}}"] == 12
    assert found[f"vllm:spec_decode_num_accepted_tokens_total{{{vllm}}}"] == 9
    assert found[f"vllm:kv_cache_usage_perc{{{vllm}}}"] == 0.25


def test_each_replica_has_its_own_numbers(exporter: Exporter) -> None:
    """Two replicas are two values of the label ``replica``, which is vLLM's ``engine``; their histograms are apart."""
    idle = dataclasses.replace(STATS, n_running=0, n_steps_by_blends=((2, 5),))
    other = Replica("1", "10.0.0.2", EngineStatus(EngineState.RESTARTING), None, idle)
    found = samples(text_of(exporter, dataclasses.replace(SNAPSHOT, replicas=(ONE, other))))
    running = {key: value for key, value in found.items() if key.startswith("gemlane_requests_running")}
    assert running == {"gemlane_requests_running{replica=0}": 2, "gemlane_requests_running{replica=1}": 0}
    assert found["vllm:num_requests_running{engine=1,model_name=gemma-7b-it-lora}"] == 0
    assert found["vllm:num_requests_running{engine=0,model_name=gemma-7b-it-lora}"] == 2
    assert found["gemlane_batch_blends_count{replica=0}"] == 7
    assert found["gemlane_batch_blends_count{replica=1}"] == 5
    assert (found["gemlane_engine_ready{replica=0}"], found["gemlane_engine_ready{replica=1}"]) == (1, 0)


def test_vllm_has_its_names() -> None:
    """The names that dashboards and gateways read are all there, spelled as vLLM spells them."""
    assert {name for name in table.exposed_names() if name.startswith("vllm:")} == {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:lora_requests_info",
    }


def test_blends_of_a_batch_are_a_histogram(exporter: Exporter) -> None:
    """Four batches of one blend, two of three and one of seventy: the buckets add up, and so does the sum."""
    found = samples(text_of(exporter))
    buckets = {
        bound: found[f"gemlane_batch_blends_bucket{{le={bound},replica=0}}"]
        for bound in ("1.0", "2.0", "3.0", "64.0", "+Inf")
    }
    assert buckets == {"1.0": 4, "2.0": 4, "3.0": 6, "64.0": 6, "+Inf": 7}
    assert found["gemlane_batch_blends_sum{replica=0}"] == 4 + 6 + 70
    assert found["gemlane_batch_blends_count{replica=0}"] == 7


def test_the_label_of_adapters_is_bounded(exporter: Exporter) -> None:
    """Beyond 32 names, adapters share one label; a digest that is not registered never becomes a label."""
    for number in range(1, 201):
        exporter.observe(AnswerStarted("r", Blend((BlendMember(f"{number:064x}"),)), 1, 0, 0.0, 0.0))
    names = Exporter("m", lambda digest: f"name-{int(digest, 16)}")
    for number in range(1, 201):
        names.observe(AnswerStarted("r", Blend((BlendMember(f"{number:064x}"),)), 1, 0, 0.0, 0.0))
    unregistered, named = samples(text_of(exporter)), samples(text_of(names))
    prefix = "gemlane_prompt_tokens_total{"
    assert {key: value for key, value in unregistered.items() if key.startswith(prefix)} == {
        f"{prefix}adapter=other}}": 200,
    }
    labels = [key for key in named if key.startswith(prefix)]
    assert len(labels) == 33
    assert named[f"{prefix}adapter=other}}"] == 200 - 32


def test_a_starting_engine_has_no_load(exporter: Exporter) -> None:
    """Before the engine is ready its metrics have no sample, since the state is unknown and not zero."""
    starting = Replica("0", "", EngineStatus())
    empty = dataclasses.replace(SNAPSHOT, ready=None, stats=None, replicas=(starting,))
    found = samples(text_of(exporter, empty))
    assert found["gemlane_engine_ready{replica=0}"] == 0
    for name in ("gemlane_requests_running", "gemlane_kv_cells", "gemlane_batch_blends_count", "gemlane_build_info"):
        assert not any(key.startswith(name) for key in found), name


@pytest.mark.parametrize("metric", table.METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: table.Metric) -> None:
    """Counters carry no suffix in the table, times are seconds, and every row explains itself in a sentence."""
    assert not metric.name.endswith("_total")
    assert metric.help.endswith(".")
    if metric.kind is Kind.HISTOGRAM and metric.name != "gemlane_batch_blends":
        assert metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(metric.buckets)

"""Every metric, declared once: gemlane's name, and vLLM's name for the same number where dashboards know that one.

The table drives the exporter, the check of the documentation and the check of the dashboard. A metric with ``read`` is
a state, read when Prometheus asks; the others are counted as events come.

Source of vLLM's names, labels and buckets: vllm/v1/metrics/loggers.py. Gateways read ``vllm:lora_requests_info``
(Gateway API Inference Extension).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from runtime.engines.protocol import Replica
from runtime.messages import Ready, Stats

_FIRST_TOKEN_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_GAP_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_LATENCY_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_LANE_WAIT_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_VLLM_REASONS: Final = {"stop": "stop", "length": "length", "cancelled": "abort"}


class Kind(StrEnum):
    """Prometheus's types of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the server at one moment."""

    ready: Ready | None
    """What is loaded; None while the engine starts."""
    stats: Stats | None
    """The engine's last report, that of all replicas together; None before the first."""
    replicas: tuple[Replica, ...]
    """Each engine with its own state and last report."""
    n_restarts: int
    """Times that the engine process had to be started again."""
    adapters: Mapping[str, int]
    """Adapters by state."""
    running: tuple[str, ...]
    """Names of the adapters of running sequences."""
    waiting: tuple[str, ...]
    """Names of the adapters of waiting sequences."""
    version: str
    """Version of gemlane."""


Labels = tuple[str, ...]
REPLICA: Final = "replica"
Sample = tuple[Labels, float]
"""Label values in the order of the metric's labels, and the value."""


@dataclass(frozen=True, slots=True)
class Twin:
    """vLLM's name for a metric's number, summed over the samples that ``select`` picks.

    ``select`` gets the metric's label values without that of the replica; it returns those of ``labels``, or None for a
    sample that vLLM does not count. Every twin also has vLLM's labels ``model_name`` and ``engine``, the replica.
    """

    name: str
    labels: Labels = ()
    select: Callable[[Labels], Labels | None] = lambda _labels: ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. A counter's ``name`` goes without ``_total``, which Prometheus's client appends.

    The first label of a number that each replica has is `REPLICA`.
    A histogram with ``read`` gives one sample for each value that occurred: the value as its label, and how often.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()
    read: Callable[[Snapshot], Iterable[Sample]] | None = None
    twins: tuple[Twin, ...] = ()

    @property
    def is_of_replica(self) -> bool:
        """Whether each replica has a number of its own."""
        return self.labels[:1] == (REPLICA,)

    @property
    def exposed_names(self) -> tuple[str, ...]:
        """The names that a user of Prometheus sees, the twins' included."""
        suffix = "_total" if self.kind is Kind.COUNTER else ""
        return tuple(name + suffix for name in (self.name, *(twin.name for twin in self.twins)))


def _of_replicas(read: Callable[[Replica], Iterable[Sample]]) -> Callable[[Snapshot], Iterable[Sample]]:
    """A reader of each replica, whose name becomes the first label value."""
    return lambda snapshot: [
        ((replica.name, *values), number) for replica in snapshot.replicas for values, number in read(replica)
    ]


def _of_stats(read: Callable[[Stats], Iterable[Sample]]) -> Callable[[Snapshot], Iterable[Sample]]:
    """A reader of each replica's report, which has no sample before the first report."""
    return _of_replicas(lambda replica: read(replica.stats) if replica.stats is not None else ())


def _one(read: Callable[[Stats], float]) -> Callable[[Snapshot], Iterable[Sample]]:
    """A reader of one number of each replica's report."""
    return _of_stats(lambda stats: [((), read(stats))])


def _kv_cells(replica: Replica) -> Iterator[Sample]:
    if replica.ready is not None and replica.stats is not None:
        running, kept = replica.stats.n_kv_cells_used, replica.stats.n_kv_cells_kept
        yield ("running",), running
        yield ("kept",), kept
        yield ("free",), replica.ready.model.n_kv_cells - running - kept


def _kv_usage(replica: Replica) -> Iterator[Sample]:
    if replica.ready is not None and replica.stats is not None:
        yield (), replica.stats.n_kv_cells_used / replica.ready.model.n_kv_cells


def _lanes(stats: Stats) -> Iterator[Sample]:
    lanes = stats.lanes
    yield from ((("empty",), lanes.n_empty), (("filling",), lanes.n_filling))
    yield from ((("used",), lanes.n_used), (("idle",), lanes.n_idle))


def _self_check(replica: Replica) -> Iterator[Sample]:
    if replica.ready is not None:
        yield (), float(replica.ready.adapter_batching == "mixed")


def _build(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.ready is not None:
        yield (snapshot.version, snapshot.ready.llama_cpp, snapshot.ready.adapter_batching), 1


def _lora_requests(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.stats is not None:
        lanes = snapshot.stats.lanes
        n_lanes = lanes.n_empty + lanes.n_filling + lanes.n_used + lanes.n_idle
        yield (str(n_lanes), ",".join(snapshot.running), ",".join(snapshot.waiting)), time.time()


REQUESTS: Final = Metric("gemlane_requests", Kind.COUNTER, "HTTP requests answered.", ("route", "status"))
ANSWERS: Final = Metric(
    "gemlane_answers",
    Kind.COUNTER,
    "Answers that ended: stop, length, cancelled, or the code of an error.",
    ("adapter", "outcome"),
    twins=(
        Twin(
            "vllm:request_success",
            ("finished_reason",),
            lambda labels: (_VLLM_REASONS[labels[1]],) if labels[1] in _VLLM_REASONS else None,
        ),
    ),
)
PROMPT_TOKENS: Final = Metric(
    "gemlane_prompt_tokens", Kind.COUNTER, "Tokens of prompts.", ("adapter",), twins=(Twin("vllm:prompt_tokens"),)
)
GENERATION_TOKENS: Final = Metric(
    "gemlane_generation_tokens",
    Kind.COUNTER,
    "Tokens of answers.",
    ("adapter",),
    twins=(Twin("vllm:generation_tokens"),),
)
FIRST_TOKEN: Final = Metric(
    "gemlane_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "Time from a request's submission to its first text.",
    ("adapter",),
    _FIRST_TOKEN_S,
    twins=(Twin("vllm:time_to_first_token_seconds"),),
)
TOKEN_GAP: Final = Metric(
    "gemlane_inter_token_seconds",
    Kind.HISTOGRAM,
    "Time between two texts of one answer.",
    buckets=_TOKEN_GAP_S,
    twins=(Twin("vllm:inter_token_latency_seconds"),),
)
ANSWER_SECONDS: Final = Metric(
    "gemlane_answer_seconds",
    Kind.HISTOGRAM,
    "Time from a request's submission to the end of its answer.",
    buckets=_LATENCY_S,
    twins=(Twin("vllm:e2e_request_latency_seconds"),),
)
QUEUE: Final = Metric(
    "gemlane_queue_seconds",
    Kind.HISTOGRAM,
    "Time that a request waited for a place among the running sequences.",
    buckets=_LATENCY_S,
    twins=(Twin("vllm:request_queue_time_seconds"),),
)
LANE_WAIT: Final = Metric(
    "gemlane_lane_wait_seconds",
    Kind.HISTOGRAM,
    "Time from a place among the running sequences to the first batch: the adapter's weights are put into a lane.",
    buckets=_LANE_WAIT_S,
)
COUNTED: Final = (
    REQUESTS, ANSWERS, PROMPT_TOKENS, GENERATION_TOKENS, FIRST_TOKEN, TOKEN_GAP, ANSWER_SECONDS, QUEUE, LANE_WAIT,
)  # fmt: skip

READ: Final = (
    Metric(
        "gemlane_requests_running",
        Kind.GAUGE,
        "Sequences that are decoded now.",
        (REPLICA,),
        read=_one(lambda stats: stats.n_running),
        twins=(Twin("vllm:num_requests_running"),),
    ),
    Metric(
        "gemlane_requests_waiting",
        Kind.GAUGE,
        "Requests that wait for a place.",
        (REPLICA,),
        read=_one(lambda stats: stats.n_waiting),
        twins=(Twin("vllm:num_requests_waiting"),),
    ),
    Metric(
        "gemlane_batch_blends",
        Kind.HISTOGRAM,
        "Distinct blends of adapters in one batch, the base model included.",
        (REPLICA, "le"),
        (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64),
        read=_of_stats(lambda stats: [((str(n),), n_steps) for n, n_steps in stats.n_steps_by_blends]),
    ),
    Metric("gemlane_steps", Kind.COUNTER, "Batches decoded.", (REPLICA,), read=_one(lambda stats: stats.n_steps)),
    Metric(
        "gemlane_decoded_tokens",
        Kind.COUNTER,
        "Tokens that went through the model, prompts included.",
        (REPLICA,),
        read=_one(lambda stats: stats.n_decoded_tokens),
    ),
    Metric(
        "gemlane_draft_tokens",
        Kind.COUNTER,
        "Tokens that were guessed ahead for answers: accepted, or rejected after they were computed.",
        (REPLICA, "outcome"),
        read=_of_stats(
            lambda stats: [
                (("accepted",), stats.n_accepted_tokens),
                (("rejected",), stats.n_drafted_tokens - stats.n_accepted_tokens),
            ]
        ),
        twins=(
            Twin("vllm:spec_decode_num_draft_tokens"),
            Twin("vllm:spec_decode_num_accepted_tokens", select=lambda labels: () if labels == ("accepted",) else None),
        ),
    ),
    Metric(
        "gemlane_prefix_tokens",
        Kind.COUNTER,
        "Prompt tokens of started sequences: found in the cache (hit) or computed (miss).",
        (REPLICA, "outcome"),
        read=_of_stats(
            lambda stats: [
                (("hit",), stats.n_cached_tokens),
                (("miss",), stats.n_prompt_tokens - stats.n_cached_tokens),
            ]
        ),
        twins=(
            Twin("vllm:prefix_cache_queries"),
            Twin("vllm:prefix_cache_hits", select=lambda labels: () if labels == ("hit",) else None),
        ),
    ),
    Metric(
        "gemlane_kv_cells",
        Kind.GAUGE,
        "Cells of the key-value cache: held by running sequences, by kept prefixes alone, or free.",
        (REPLICA, "state"),
        read=_of_replicas(_kv_cells),
    ),
    Metric(
        "gemlane_kv_usage_ratio",
        Kind.GAUGE,
        "Share of the key-value cache that running sequences hold.",
        (REPLICA,),
        read=_of_replicas(_kv_usage),
        twins=(Twin("vllm:kv_cache_usage_perc"),),
    ),
    Metric("gemlane_lanes", Kind.GAUGE, "Lanes of the bank by state.", (REPLICA, "state"), read=_of_stats(_lanes)),
    Metric(
        "gemlane_lane_fills",
        Kind.COUNTER,
        "Times that a blend's weights were written into a lane.",
        (REPLICA,),
        read=_one(lambda stats: stats.lanes.n_fills),
    ),
    Metric(
        "vllm:lora_requests_info",
        Kind.GAUGE,
        "Adapters of running and waiting requests; the value is the Unix time.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        read=_lora_requests,
    ),
    Metric(
        "gemlane_adapters",
        Kind.GAUGE,
        "Adapters by state.",
        ("state",),
        read=lambda snapshot: [((state,), n) for state, n in sorted(snapshot.adapters.items())],
    ),
    Metric(
        "gemlane_engine_ready",
        Kind.GAUGE,
        "1 while the engine takes requests, 0 while it starts.",
        (REPLICA,),
        read=_of_replicas(lambda replica: [((), float(replica.ready is not None))]),
    ),
    Metric(
        "gemlane_engine_restarts",
        Kind.COUNTER,
        "Times that the engine process had to be started again.",
        read=lambda snapshot: [((), snapshot.n_restarts)],
    ),
    Metric(
        "gemlane_selfcheck_passed",
        Kind.GAUGE,
        "1 if the lanes passed their self-check and adapters are mixed in one batch.",
        (REPLICA,),
        read=_of_replicas(_self_check),
    ),
    Metric(
        "gemlane_build_info",
        Kind.GAUGE,
        "Versions and the way of batching adapters; the value is 1.",
        ("version", "llama_cpp", "adapter_batching"),
        read=_build,
    ),
)
METRICS: Final = COUNTED + READ


def exposed_names() -> tuple[str, ...]:
    """Every name at ``/metrics``, as Prometheus shows it."""
    return tuple(itertools.chain.from_iterable(metric.exposed_names for metric in METRICS))

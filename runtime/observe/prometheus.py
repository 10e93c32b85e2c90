"""Prometheus's metrics: counts events, reads the state when asked, and writes the text format.

The only module that knows ``prometheus_client``. What the metrics are is in `runtime.observe.table`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from runtime.generation import Blend
from runtime.observe import names, table
from runtime.observe.events import AnswerEnded, AnswerStarted, Event, RequestEnded, TokensCame
from runtime.observe.names import NameOf
from runtime.observe.table import Kind, Labels, Metric, Sample, Snapshot, Twin

CONTENT_TYPE: Final = prometheus_client.exposition.CONTENT_TYPE_PLAIN_0_0_4
"""Every Prometheus reads it; no name here needs the quoting of version 1.0.0."""
_TWIN_LABELS: Final = ("model_name", "engine")
_MAX_ADAPTER_LABELS: Final = 32
"""Adapters beyond that share the label ``other``: each label value is kept for ever, in Prometheus too."""
_OTHER: Final = "other"


class Exporter:
    """Counts events and writes ``/metrics``. Belongs to the event loop."""

    def __init__(self, model_name: str, name_of: NameOf) -> None:
        """Start with every counter at zero; ``model_name`` is vLLM's label of that name."""
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._twin_values = (model_name, "0")
        self._adapter_labels = _AdapterLabels(name_of)
        self._counted = {metric.name: _Counted(metric, self._registry, self._twin_values) for metric in table.COUNTED}
        self._state = _State(self._twin_values)
        self._registry.register(self._state)
        ProcessCollector(registry=self._registry)

    def observe(self, event: Event) -> None:
        """Count one event."""
        match event:
            case AnswerStarted():
                self._count(table.PROMPT_TOKENS, event.n_prompt_tokens, self._adapter_labels.of(event.blend))
                self._count(table.QUEUE, event.queue_s)
                self._count(table.LANE_WAIT, event.lane_wait_s)
            case TokensCame(is_first=True):
                self._count(table.FIRST_TOKEN, event.gap_s, self._adapter_labels.of(event.blend))
            case TokensCame():
                self._count(table.TOKEN_GAP, event.gap_s)
            case AnswerEnded():
                adapter = self._adapter_labels.of(event.blend)
                self._count(table.ANSWERS, 1, adapter, event.outcome)
                self._count(table.GENERATION_TOKENS, event.usage.n_completion_tokens, adapter)
                self._count(table.ANSWER_SECONDS, event.total_s)
            case RequestEnded():
                self._count(table.REQUESTS, 1, event.route or _OTHER, str(event.status))

    def _count(self, metric: Metric, value: float, *labels: str) -> None:
        self._counted[metric.name].count(value, labels)

    def render(self, snapshot: Snapshot) -> bytes:
        """The text format 0.0.4, with the state of ``snapshot``."""
        self._state.snapshot = snapshot
        return prometheus_client.generate_latest(self._registry)


class _AdapterLabels:
    """The bounded label ``adapter``."""

    def __init__(self, name_of: NameOf) -> None:
        self._name_of = name_of
        self._seen: set[str] = set()

    def of(self, blend: Blend) -> str:
        """The name of the blend, or ``other`` for a new one once there are enough."""
        name = names.label(blend, self._name_of)
        if name is None or (name not in self._seen and len(self._seen) >= _MAX_ADAPTER_LABELS):
            return _OTHER
        self._seen.add(name)
        return name


class _Counted:
    """A counter or histogram, and its twins."""

    def __init__(self, metric: Metric, registry: CollectorRegistry, twin_values: Labels) -> None:
        self._twin_values = twin_values
        self._own = _make(metric, metric.name, metric.help, metric.labels, registry)
        self._twins = [
            (twin, _make(metric, twin.name, _twin_help(metric), (*_TWIN_LABELS, *twin.labels), registry))
            for twin in metric.twins
        ]

    def count(self, value: float, labels: Labels) -> None:
        """Add to the counter, or observe with the histogram, and so with the twins."""
        _add(self._own, labels, value)
        for twin, wrapped in self._twins:
            picked = twin.select(labels)
            if picked is not None:
                _add(wrapped, (*self._twin_values, *picked), value)


def _twin_help(metric: Metric) -> str:
    return f"vLLM's name for {metric.exposed_names[0]}."


def _make(
    metric: Metric, name: str, help_text: str, labels: Labels, registry: CollectorRegistry
) -> Counter | Histogram:
    if metric.kind is Kind.COUNTER:
        return Counter(name, help_text, labels, registry=registry)
    return Histogram(name, help_text, labels, registry=registry, buckets=metric.buckets)


def _add(wrapped: Counter | Histogram, labels: Labels, value: float) -> None:
    child = wrapped.labels(*labels) if labels else wrapped
    if isinstance(child, Counter):
        child.inc(value)
    else:
        child.observe(value)


class _State(Collector):
    """The rows of the table that are read."""

    def __init__(self, twin_values: Labels) -> None:
        self._twin_values = twin_values
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Family]:
        """Every state, under its own name and under its twins'."""
        if self.snapshot is None:
            return
        for metric in table.READ:
            assert metric.read is not None
            samples = list(metric.read(self.snapshot))
            if metric.kind is Kind.HISTOGRAM:
                yield _histograms(metric, samples)
                continue
            yield _family(metric.kind, metric.name, metric.help, metric.labels, samples)
            for twin in metric.twins:
                labels = (*_TWIN_LABELS, *twin.labels)
                numbers = self._twin_samples(metric, twin, samples)
                yield _family(metric.kind, twin.name, _twin_help(metric), labels, numbers)

    def _twin_samples(self, metric: Metric, twin: Twin, samples: Iterable[Sample]) -> list[Sample]:
        model, engine = self._twin_values
        sums: dict[Labels, float] = defaultdict(float)
        for labels, value in samples:
            replica, own = (labels[0], labels[1:]) if metric.is_of_replica else (engine, labels)
            picked = twin.select(own)
            if picked is not None:
                sums[(model, replica, *picked)] += value
        return list(sums.items())


def _family(kind: Kind, name: str, help_text: str, labels: Labels, samples: Iterable[Sample]) -> Family:
    make = CounterMetricFamily if kind is Kind.COUNTER else GaugeMetricFamily
    family = make(name, help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histograms(metric: Metric, samples: Iterable[Sample]) -> HistogramMetricFamily:
    """One for each replica, from how often each value occurred; without samples there is none."""
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels[:-1])
    counts: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, n in samples:
        counts[labels[:-1]].append((float(labels[-1]), n))
    bounds = [*metric.buckets, float("inf")]
    for labels, own in counts.items():
        buckets = [(_bound(bound), sum(n for value, n in own if value <= bound)) for bound in bounds]
        family.add_metric(labels, buckets, sum(value * n for value, n in own))
    return family


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))

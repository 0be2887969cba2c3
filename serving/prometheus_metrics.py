"""Metrics in Prometheus' format, for GET /metrics."""

from collections.abc import Callable
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

ReadValue: TypeAlias = Callable[[], float]

SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the histogram buckets of times, in seconds."""
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram buckets of batch sizes."""


class Metrics:
    """Metrics of one service, in a registry of its own, so that one process can run several services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tessera_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("tessera_request_seconds", "Time of a request", ["path"], buckets=SECONDS_BUCKETS, registry=self.registry)
        self.batch = Histogram("tessera_batch_size", "Questions in a batch", buckets=BATCH_SIZE_BUCKETS, registry=self.registry)
        self.batch_seconds = Histogram("tessera_batch_seconds", "Time of a batch", buckets=SECONDS_BUCKETS, registry=self.registry)
        self.tokens = Counter("tessera_generated_tokens", "Tokens generated for chat completions", registry=self.registry)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Record the size of a batch and its time in seconds."""
        self.batch.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def add_gauges(self, gauges: "GaugeCollector") -> None:
        """Add metrics whose values are read at each scrape."""
        self.registry.register(gauges)


class GaugeCollector:
    """Metrics whose values are read at each scrape.

    gauges_by_name: description and read function of each metric. Names that end in `_total` are exported as counters.
    """

    def __init__(self, gauges_by_name: dict[str, tuple[str, ReadValue]]):
        self.gauges_by_name = gauges_by_name

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """The metrics with their current values; called by prometheus_client."""
        families: list[GaugeMetricFamily | CounterMetricFamily] = []
        for name, (description, read_value) in self.gauges_by_name.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            families.append(kind(name, description, value=read_value()))
        return families

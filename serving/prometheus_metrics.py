"""What Prometheus reads at /metrics."""

from collections.abc import Callable
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

ReadValue: TypeAlias = Callable[[], float]

SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service; several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tessera_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("tessera_request_seconds", "Time of a request", ["path"], buckets=SECONDS_BUCKETS, registry=self.registry)
        self.batch = Histogram("tessera_batch_size", "Questions answered together", buckets=BATCH_SIZE_BUCKETS, registry=self.registry)
        self.batch_seconds = Histogram("tessera_batch_seconds", "Time of a batch", buckets=SECONDS_BUCKETS, registry=self.registry)
        self.tokens = Counter("tessera_generated_tokens", "Tokens of chat completions", registry=self.registry)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batch.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def add_gauges(self, gauges: "GaugeCollector") -> None:
        """Report what `gauges` knows whenever someone reads."""
        self.registry.register(gauges)


class GaugeCollector:
    """States that are asked for when someone reads: a name, what it means, and how it is found. Names that end in `_total`
    only ever grow."""

    def __init__(self, gauges_by_name: dict[str, tuple[str, ReadValue]]):
        self.gauges_by_name = gauges_by_name

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        families: list[GaugeMetricFamily | CounterMetricFamily] = []
        for name, (meaning, value) in self.gauges_by_name.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            families.append(kind(name, meaning, value=value()))
        return families

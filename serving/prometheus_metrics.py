"""Metrics in Prometheus' format, for GET /metrics."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

ReadValue: TypeAlias = Callable[[], float]

SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the histogram buckets of times, in seconds."""
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram buckets of batch sizes."""


class Metrics:
    """Metrics of one service, in a registry of its own, so that one process can run several services.

    gauges_by_name: description and read function of each metric whose value is read at each scrape. Names that end in `_total` are
    exported as counters.
    """

    def __init__(self, gauges_by_name: Mapping[str, tuple[str, ReadValue]]):
        self.gauges_by_name = gauges_by_name
        self.registry = CollectorRegistry()
        self.requests = Counter("tessera_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("tessera_request_seconds", "Time of a request", ["path"], buckets=SECONDS_BUCKETS, registry=self.registry)
        self.batch = Histogram("tessera_batch_size", "Questions in a batch", buckets=BATCH_SIZE_BUCKETS, registry=self.registry)
        self.batch_seconds = Histogram("tessera_batch_seconds", "Time of a batch", buckets=SECONDS_BUCKETS, registry=self.registry)
        self.tokens = Counter("tessera_generated_tokens", "Tokens generated for chat completions", registry=self.registry)
        self.registry.register(self)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Record the size of a batch and its time in seconds."""
        self.batch.observe(size)
        self.batch_seconds.observe(seconds)

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """The metrics of `gauges_by_name` with their current values; called by prometheus_client."""
        return [
            (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(name, description, value=read_value())
            for name, (description, read_value) in self.gauges_by_name.items()
        ]

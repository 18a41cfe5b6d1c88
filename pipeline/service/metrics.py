"""What Prometheus reads at /metrics."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "scan_pipeline", "registry": self.registry}
        self.requests = Histogram("request_seconds", "Answering.", ["route", "status"], buckets=SECONDS, **common)
        self.batch = Histogram("batch_queries", "Queries that were answered together.", buckets=SIZES, **common)
        self.waiting = Gauge("waiting_requests", "Requests in the queue.", **common)
        self.photos = Gauge("photos", "Photos that are searched.", **common)
        self.reloads = Counter("reloads", "Of the stores, since the start.", ["result"], **common)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return generate_latest(self.registry)

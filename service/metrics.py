"""Prometheus metrics, one registry for each app."""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

STAGE_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and gauges. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "loci_requests",
            "Requests by route and status; status 0 was cut off.",
            ["route", "status"],
            registry=self.registry,
        )
        self._stages = Histogram(
            "loci_stage_seconds",
            "Seconds by stage of a query, waiting included.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "loci_batch_images", "Images in a batch.", buckets=BATCH_BUCKETS, registry=self.registry
        )
        self._photos = Gauge("loci_index_photos", "Photos in the served snapshot.", registry=self.registry)
        self._places = Gauge("loci_index_places", "Places in the served snapshot.", registry=self.registry)
        self._answers = Counter(
            "loci_answers",
            "Answers by whether the place is known; unsure where the index cannot tell.",
            ["known"],
            registry=self.registry,
        )
        self._refused = Counter(
            "loci_refused", "Requests refused, by kind of problem.", ["problem"], registry=self.registry
        )

    def request(self, route: str, status: int, problem: str | None = None) -> None:
        """Count a request, and its refusal if there was one."""
        self._requests.labels(route, str(status)).inc()
        if problem is not None:
            self._refused.labels(problem).inc()

    def no_request(self, status: str) -> None:
        """Count a connection that ended before a request: not HTTP, too slow, or too many."""
        self._requests.labels("none", status).inc()

    def answer(self, known: bool | None) -> None:
        """Count an answer."""
        self._answers.labels({True: "known", False: "unknown", None: "unsure"}[known]).inc()

    def stage(self, name: str, seconds: float) -> None:
        """Record the time of a stage of a query."""
        self._stages.labels(name).observe(seconds)

    def batch(self, images: int) -> None:
        """Record a batch."""
        self._batches.observe(images)

    def index(self, info: Mapping[str, Any]) -> None:
        """Record the counts of the served snapshot."""
        self._photos.set(info["photos"])
        self._places.set(info["places"])

    def watch(self, name: str, meaning: str, value: Callable[[], int]) -> None:
        """Add a gauge whose value is read with the metrics."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

"""The service's Prometheus metrics: one registry an app, so that two apps never mix."""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

STAGE_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What is counted; every method may be called from any thread."""

    def __init__(
        self, queued: Callable[[], int], decoding: Callable[[], int], ready: Callable[[], bool]
    ) -> None:
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
        self._watch("loci_queue_images", "Images waiting for the network.", queued)
        self._watch("loci_decode_photos", "Photos being decoded, or waiting for it.", decoding)
        self._watch("loci_ready", "1 when queries are answered, else 0.", ready)

    def request(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def stage(self, name: str, seconds: float) -> None:
        """Record how long a stage of a query took."""
        self._stages.labels(name).observe(seconds)

    def batch(self, images: int) -> None:
        """Record a batch."""
        self._batches.observe(images)

    def index(self, info: Mapping[str, Any]) -> None:
        """Record what is served from now on."""
        self._photos.set(info["photos"])

    def _watch(self, name: str, meaning: str, value: Callable[[], int]) -> None:
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Render all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

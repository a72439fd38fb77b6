"""What the service counts and times, for Prometheus. No label holds what a user has written."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from triptych.server.jobs.store import Job, Store
from triptych.server.models import Models

SHORT = Histogram.DEFAULT_BUCKETS
LONG = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper ends, in seconds, of the bins of what takes milliseconds or an hour."""


class Figures:
    """Counters and histograms of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._count("requests", "Requests by route and status", "route", "status")
        self.request_seconds = self._time("request", "Seconds to the first byte", SHORT)
        self.jobs = self._count("jobs", "Jobs that have ended", "name", "state")
        self.wait_seconds = self._time("queue_wait", "Seconds that a job has waited")
        self.job_seconds = self._time("job", "Seconds that a job has run")
        self.load_seconds = self._time("model_load", "Seconds that a model took to load")
        self.steps = self._count("steps", "Steps of samplers, and batches of other pipelines")
        self.tokens = self._count("tokens", "Tokens of language models, read or written", "kind")
        self.first_token_seconds = self._time(
            "first_token", "Seconds from a request to the first word of its answer"
        )

    def _count(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"triptych_{name}", text, labels, registry=self.registry)

    def _time(self, name: str, text: str, bins: tuple[float, ...] = LONG) -> Histogram:
        return Histogram(f"triptych_{name}_seconds", text, buckets=bins, registry=self.registry)

    def watch(self, jobs: Store, models: Models) -> None:
        """Tell the queue and the models in memory, as they are when Prometheus asks."""
        self.registry.register(Now(jobs, models))

    def note_start(self, job: Job) -> None:
        """A worker has taken a job."""
        self.wait_seconds.observe((job.started or job.created) - job.created)

    def note_end(self, job: Job, state: str) -> None:
        """A job has ended."""
        self.jobs.labels(job.name, state).inc()
        self.job_seconds.observe(time.time() - (job.started or job.created))


class Now(Collector):
    """Figures that are read when Prometheus asks."""

    def __init__(self, jobs: Store, models: Models):
        self.jobs, self.models = jobs, models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The queue by state, and the memory of models."""
        queue = self.jobs.queue()
        depth = GaugeMetricFamily("triptych_queue_depth", "Jobs by state", labels=["state"])
        for state in ("waiting", "running", "cancelling"):
            depth.add_metric([state], sum(job.state == state for job in queue))
        yield depth
        sizes = self.models.sizes()
        for name, text, value in (
            ("triptych_resident_bytes", "Weights of loaded models", sum(sizes.values())),
            ("triptych_loaded_models", "Loaded models", len(sizes)),
        ):
            yield GaugeMetricFamily(name, text, value=value)

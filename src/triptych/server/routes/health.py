"""Is it alive, does it take work, and figures for Prometheus."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from triptych.server.routes.errors import ERRORS
from triptych.server.service import Service


class State:
    """Figures that are read when Prometheus asks."""

    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> list[GaugeMetricFamily]:
        """The queue by state, and the memory of models."""
        queue = self.service.jobs.queue()
        depth = GaugeMetricFamily("triptych_queue_depth", "Jobs by state", labels=["state"])
        for state in ("waiting", "running", "cancelling"):
            depth.add_metric([state], sum(job.state == state for job in queue))
        sizes = self.service.models.sizes()
        resident = GaugeMetricFamily("triptych_resident_bytes", "Weights of loaded models")
        resident.add_metric([], sum(sizes.values()))
        models = GaugeMetricFamily("triptych_loaded_models", "Loaded models")
        models.add_metric([], len(sizes))
        return [depth, resident, models]


def routes(service: Service, registry: CollectorRegistry) -> APIRouter:
    """`/healthz`, `/readyz` and `/metrics`."""
    router = APIRouter(tags=["service"], responses=ERRORS)
    registry.register(State(service))  # type: ignore[arg-type]

    @router.get("/healthz", response_model=None)
    async def is_alive() -> Response:
        """Answers as long as the process does."""
        return JSONResponse({"status": "ok"})

    @router.get("/readyz", response_model=None)
    async def is_ready() -> Response:
        """200 while new work is taken; 503 while the service stops."""
        ready = service.ready
        return JSONResponse({"status": "ok" if ready else "stopping"}, 200 if ready else 503)

    @router.get(
        "/metrics", response_model=None,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    async def read_metrics() -> Response:
        """Figures in the text format of Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router

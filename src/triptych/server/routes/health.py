"""Is it alive, does it take work, and figures for Prometheus."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from triptych.server.routes.errors import ERRORS
from triptych.server.service import Service


def routes(service: Service) -> APIRouter:
    """`/healthz`, `/readyz` and `/metrics`."""
    router = APIRouter(tags=["service"], responses=ERRORS)

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
        return Response(generate_latest(service.figures.registry), media_type=CONTENT_TYPE_LATEST)

    return router

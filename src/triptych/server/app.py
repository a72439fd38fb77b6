"""All routes and guards as one ASGI application."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from triptych.server.figures import Figures
from triptych.server.guard import Asgi, Guard, Message, Receive, Scope, Send
from triptych.server.routes import (
    automatic1111,
    health,
    library,
    openai,
    openai_chat,
    openai_embeddings,
    own,
    page,
)
from triptych.server.routes.errors import handle_errors
from triptych.server.service import Service


def build_app(service: Service, port: Callable[[], int]) -> Asgi:
    """The application of a service that is reached at `port()`."""
    app = FastAPI(
        title="Triptych", version=version("triptych"), docs_url=None, redoc_url=None,
        redirect_slashes=False,  # a redirect would be made of what the client calls this host
        description="Every request as a job, and the routes of OpenAI and AUTOMATIC1111.",
    )  # fmt: skip
    handle_errors(app)
    app.include_router(own.routes(service))
    app.include_router(library.routes(service))
    app.include_router(openai.routes(service))
    app.include_router(openai_chat.routes(service))
    app.include_router(openai_embeddings.routes(service))
    app.include_router(automatic1111.routes(service))
    app.include_router(health.routes(service))
    app.include_router(page.routes())
    counted = count_requests(app, service.figures)
    return Guard(counted, service.settings, service.limits, port)


def count_requests(app: Any, figures: Figures) -> Asgi:
    """Counts and times requests by route, never by what a user has written."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                figures.requests.labels(route, str(message["status"])).inc()
                figures.request_seconds.observe(time.monotonic() - began)
            await send(message)

        await app(scope, receive, noted if scope["type"] == "http" else send)

    return counted

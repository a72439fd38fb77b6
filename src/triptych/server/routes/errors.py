"""Every error in the shape of its family of clients, and without the words of a library."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from triptych.server.guard import Refusal
from triptych.server.jobs.carry_out import UNEXPECTED
from triptych.server.jobs.store import QueueFull
from triptych.server.routes.answers import Failure, error_body
from triptych.server.routes.waiting import LEFT, ClientLeft

SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
AUTOMATIC1111_SCHEMA = {
    "type": "object",
    "required": ["error", "detail", "errors"],
    "properties": {name: {"type": "string"} for name in ("error", "detail", "body", "errors")},
}
STATUSES = {
    400: "The request is refused; says why",
    401: "The API key is missing or wrong",
    403: "A page of another site",
    404: "There is no such thing",
    408: "The body did not come in time",
    409: "Not in this state",
    413: "Too large",
    415: "Another type of body",
    421: "Another host name",
    429: "Too many jobs of this client wait",
    500: "The service failed",
    503: "Too many jobs wait, or the service stops",
    507: "Not enough memory, or the disk is full",
}
NAMES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def describe_errors(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The errors of a family of routes for OpenAPI."""
    content = {"application/json": {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in STATUSES.items()}


ERRORS = describe_errors(SCHEMA)
AUTOMATIC1111_ERRORS = describe_errors(AUTOMATIC1111_SCHEMA)


def answer_error(request: Request, failure: Failure) -> Response:
    """An error as the clients of this path read it."""
    path = request.scope["path"]
    body = error_body(
        path, failure.status, failure.message, failure.kind, failure.param, failure.code
    )
    return JSONResponse(body, failure.status, failure.headers)


def handle_errors(app: FastAPI) -> None:
    """Answer every error in one of the shapes."""

    async def failure(request: Request, error: Exception) -> Response:
        assert isinstance(error, Failure)
        return answer_error(request, error)

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        headers = {"connection": "close"} if error.status in (408, 413) else {}
        return answer_error(
            request,
            Failure(error.status, error.message, kind=error.kind, code=error.code, headers=headers),
        )

    async def full(request: Request, error: Exception) -> Response:
        assert isinstance(error, QueueFull)
        status, kind = (429, "rate_limit_error") if error.client else (503, "server_error")
        return answer_error(
            request,
            Failure(status, str(error), kind=kind, code="queue_full", headers={"retry-after": "5"}),
        )

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])[:60]
        what = "is missing" if first["type"] == "missing" else "has a value that is not taken"
        return answer_error(
            request, Failure(400, f"{name} {what}", param=name, code="invalid_value")
        )

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        texts = {404: "there is no such route", 405: "this route has another method"}
        text = texts.get(error.status_code, "the request cannot be read")
        kind = NAMES.get(error.status_code, "invalid_request_error")
        headers = dict(error.headers or {})
        return answer_error(request, Failure(error.status_code, text, kind=kind, headers=headers))

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=LEFT)

    async def unexpected(request: Request, error: Exception) -> Response:
        retry = {"x-should-retry": "false"}
        return answer_error(request, Failure(500, UNEXPECTED, kind="server_error", headers=retry))

    app.add_exception_handler(Failure, failure)
    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(QueueFull, full)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientLeft, left)
    app.add_exception_handler(Exception, unexpected)

"""Triptych's own routes: every request as a job, its events, and the queue."""

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from triptych.fields import from_json, to_json
from triptych.server.catalog import Offered, offered_requests, typed_fields
from triptych.server.guard import COOKIE, key_digest, session_token
from triptych.server.jobs.inputs import Refused
from triptych.server.jobs.store import ACTIVE, FINAL, Event, Job
from triptych.server.offers import NAME
from triptych.server.prompts import ReadPrompt, read_prompt
from triptych.server.routes.answers import (
    Failure,
    JobAnswer,
    describe_event,
    describe_job,
    not_found,
)
from triptych.server.routes.errors import ERRORS
from triptych.server.schema import schema_of
from triptych.server.sentences import name_fields
from triptych.server.service import Service

Number = Annotated[int, Query(ge=0, le=(1 << 62))]
Limit = Annotated[int, Query(ge=1, le=500)]
SEARCHED = 8
"""Words of a sentence among which the field is looked for that it is about."""
LAST_EVENT = "x-last-event"
ONE_JOB: dict[int | str, dict[str, Any]] = {200: {"model": JobAnswer}}
TEXT = {"type": "string"}
EVENT = {"type": "object", "properties": {"id": TEXT, "event": TEXT, "data": TEXT}}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT}}}
}
"""Server-sent events, whose schema is that of one event."""


async def read_json(request: Request) -> Any:
    """The body as JSON.

    Raises:
        Failure: it is none.
    """
    body = await request.body()
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Failure(400, "the body is not JSON", code="invalid_json") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


def client_of(request: Request) -> str:
    """The address of a client."""
    return request.client.host if request.client else ""


def to_failure(error: ValueError, kind: type | None = None) -> Failure:
    """The sentence about a request of this kind that is refused, and the field that it is about."""
    message = name_fields(str(error), kind) if kind else str(error)
    if isinstance(error, Refused):
        return Failure(400, message, param=error.place, code="invalid_value")
    sentence, place = split_sentence(message, kind) if kind else (message, "")
    return Failure(400, sentence, param=place or None, code="invalid_value")


def split_sentence(message: str, kind: type) -> tuple[str, str]:
    """The sentence of a dataclass without its name, and the path of the field that it is about:
    what it names in front, else the first word that is a field.
    """
    if match := re.match(rf"{kind.__name__} (?:has no|lacks the) field '(\w{{1,60}})'", message):
        return message, match[1]
    match = re.match(rf"{kind.__name__}(?:\.([\w.\[\]]+))?(:| )\s*(.*)", message, re.DOTALL)
    if match is None:
        return message, ""
    place, sentence = match[1] or "", match[3]
    if place and match[2] == " ":  # a value of another type
        return f"{place} {sentence}", place
    if match[2] == " ":
        return message, ""
    inner = place_kind(kind, place)
    names = {field.name for field, _ in typed_fields(inner)} if inner else set()
    words = re.findall(r"\w+", re.sub(r"'[^']*'", "", sentence))
    found = next((word for word in words[:SEARCHED] if word in names), "")
    return sentence, ".".join(filter(None, (place, found)))


def place_kind(kind: type, place: str) -> type | None:
    """The dataclass at a place of another, such as `training`; None where there is none."""
    for name in filter(None, place.split(".")):
        hints: dict[str, Any] = {field.name: hint for field, hint in typed_fields(kind)}
        if not dataclasses.is_dataclass(hints.get(name)):
            return None
        kind = hints[name]
    return kind


def routes(service: Service) -> APIRouter:
    """All routes below `/api/` that are about jobs."""
    router = APIRouter(prefix="/api", responses=ERRORS)
    for offered in offered_requests().values():
        _add_request(router, service, offered)
    _add_jobs(router, service)
    _add_changes(router, service)
    _add_events(router, service)
    _add_facts(router, service)
    return router


def _add_request(router: APIRouter, service: Service, offered: Offered) -> None:
    schema = schema_of(offered.kind)
    trains = offered.lane == "train"

    async def submit(request: Request, run: str, keeps: bool) -> Response:
        body = await read_json(request)
        try:
            read = await run_in_threadpool(service.read, offered, body)
        except ValueError as error:
            raise to_failure(error, offered.kind) from None
        if keeps and getattr(read, "n", 1) != 1:
            raise Failure(
                400, "all previews are kept of one picture alone", param="n", code="invalid_value"
            )
        once = request.headers.get("idempotency-key")
        name = _run_name(service, offered, run) if trains else ""
        job = service.submit(
            offered, read, client=client_of(request), run=name, once=once, keeps=keeps
        )
        links = {"location": f"/api/jobs/{job.id}"}
        return JSONResponse(describe_job(service, job), 202, links)

    async def draw(request: Request, previews: Literal["last", "all"] = "last") -> Response:
        return await submit(request, "", previews == "all")

    async def train(request: Request, run: str = "") -> Response:
        return await submit(request, run, False)

    endpoint: Callable[..., Awaitable[Response]] = train if trains else draw
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    router.add_api_route(
        f"/{offered.name}",
        endpoint,
        methods=["POST"],
        status_code=202,
        operation_id=offered.name,
        summary=schema["description"].partition(". ")[0],
        tags=["requests"],
        response_model=None,
        responses={202: {"model": JobAnswer, "description": "In the queue"}},
        openapi_extra={"requestBody": body},
    )


def _run_name(service: Service, offered: Offered, given: str) -> str:
    """The name of a training's run folder: as given, or numbered.

    Raises:
        Failure: it is no plain name, or taken.
    """
    if given:
        if not NAME.fullmatch(given) or given.endswith("."):
            raise Failure(
                400, "run is a plain name: letters, digits, spaces and . _ + -, at most 80",
                param="run", code="invalid_value",
            )  # fmt: skip
        if (service.places.runs / given).exists() or given in service.offers.models():
            raise Failure(
                409, f"there is a model {given!r} already", kind="conflict_error", param="run"
            )
        return given
    number = 1
    taken = service.offers.models()
    while (name := f"{offered.recipe}-{number}") in taken or (service.places.runs / name).exists():
        number += 1
    return name


def find_job(service: Service, key: str) -> Job:
    """The job of an id.

    Raises:
        Failure: there is none.
    """
    try:
        return service.jobs.job(key)
    except KeyError:
        raise not_found("job") from None


def _add_jobs(router: APIRouter, service: Service) -> None:
    @router.get(
        "/jobs", tags=["jobs"], responses={200: {"model": list[JobAnswer]}}, response_model=None
    )
    async def list_jobs(before: Number = 1 << 62, limit: Limit = 100) -> Response:
        """The newest jobs first; `before` is the `number` of the last one of the page before. The
        header `x-last-event` has the number of the event that they are the state after.
        """
        return _answer_jobs(service, lambda: service.jobs.jobs(before=before, limit=limit))

    @router.get(
        "/queue", tags=["jobs"], responses={200: {"model": list[JobAnswer]}}, response_model=None
    )
    async def read_queue() -> Response:
        """What runs, then what waits, in the order in which it will run; with `x-last-event`."""
        return _answer_jobs(service, service.jobs.queue)

    @router.get("/jobs/{key}", tags=["jobs"], responses=ONE_JOB, response_model=None)
    async def read_job(key: str) -> Response:
        """A job as it is now, with its result if there is one."""
        service.feed.note_look()
        return JSONResponse(describe_job(service, find_job(service, key)))


def _answer_jobs(service: Service, read: Callable[[], list[Job]]) -> Response:
    last = service.jobs.last_event()  # before: an event that is seen twice changes nothing
    jobs = [describe_job(service, job) for job in read()]
    return JSONResponse(jobs, headers={LAST_EVENT: str(last)})


def _add_changes(router: APIRouter, service: Service) -> None:
    @router.delete("/jobs/{key}", tags=["jobs"], responses=ONE_JOB, response_model=None)
    async def cancel_job(key: str) -> Response:
        """Cancel a job: at once if it waits, else at its next step. What it has drawn stays."""
        find_job(service, key)
        state = service.workers.cancel(key)
        if state in FINAL and state != "cancelled":
            raise Failure(
                409, f"the job has ended: it is {state}", kind="conflict_error", code="ended"
            )
        return JSONResponse(describe_job(service, find_job(service, key)))

    @router.post(
        "/jobs/{key}/again", tags=["jobs"], status_code=202, response_model=None,
        responses={202: {"model": JobAnswer}},
    )  # fmt: skip
    async def repeat_job(request: Request, key: str) -> Response:
        """The same request as a new job; a training goes on from its last checkpoint."""
        job = find_job(service, key)
        offered = offered_requests()[job.name]
        try:
            read = await run_in_threadpool(service.read, offered, job.request)
        except ValueError as error:
            raise to_failure(error, offered.kind) from None
        new = service.submit(offered, read, client=client_of(request), run=job.run, keeps=job.keeps)
        return JSONResponse(describe_job(service, new), 202, {"location": f"/api/jobs/{new.id}"})

    @router.put("/jobs/{key}/place", tags=["jobs"], responses=ONE_JOB, response_model=None)
    async def move_job(key: str, place: Annotated[int, Query(ge=0, le=10_000)]) -> Response:
        """Move a waiting job: 0 is the next to run."""
        find_job(service, key)
        try:
            service.jobs.move(key, place)
        except ValueError as error:
            raise Failure(409, str(error), kind="conflict_error", code="running") from None
        service.feed.notify()
        return JSONResponse(describe_job(service, find_job(service, key)))

    @router.delete("/results/{key}", tags=["results"], status_code=204, response_model=None)
    async def delete_result(key: str) -> Response:
        """Delete a job that has ended, with all its pictures."""
        if find_job(service, key).state in ACTIVE:
            raise Failure(
                409, "the job has not ended: cancel it first", kind="conflict_error", code="running"
            )
        for path in service.jobs.forget(key):
            (service.places.home / path).unlink(missing_ok=True)
        for folder in (service.places.results / key, service.places.shown / key):
            (folder / "job.json").unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        service.feed.notify(ended=True)
        return Response(status_code=204)


def _add_events(router: APIRouter, service: Service) -> None:
    async def stream(after: int, job: str = "") -> AsyncIterator[bytes]:
        pause = service.limits.keep_alive_seconds
        async for event in service.feed.follow(after, job, pause):
            yield KEEPALIVE_COMMENT if event is None else encode_event(event)

    def start(request: Request, after: int) -> int:
        last = request.headers.get("last-event-id", "")
        return max(after, int(last)) if last.isdecimal() and len(last) < 19 else after

    @router.get("/events", tags=["jobs"], responses=STREAM, response_model=None)
    async def follow_all(request: Request, after: Number = 0) -> Response:
        """Server-sent events of all jobs: those after a number, then as they come."""
        return StreamingResponse(stream(start(request, after)), media_type="text/event-stream")

    @router.get("/jobs/{key}/events", tags=["jobs"], responses=STREAM, response_model=None)
    async def follow_job(request: Request, key: str, after: Number = 0) -> Response:
        """Server-sent events of one job: those after a number, then as they come, until it ends."""
        find_job(service, key)
        return StreamingResponse(stream(start(request, after), key), media_type="text/event-stream")


def encode_event(event: Event) -> bytes:
    """An event as a browser reads it."""
    data = json.dumps(describe_event(event))
    return format_sse_event(data_str=data, event=event.kind, id=str(event.number))


def _add_facts(router: APIRouter, service: Service) -> None:
    @router.get("/requests", tags=["requests"], response_model=None)
    async def list_requests() -> Response:
        """Every request with the JSON Schema of its fields, and presets of trainings."""
        return JSONResponse(
            [_describe_request(service, one) for one in offered_requests().values()]
        )

    schema = {"application/json": {"schema": schema_of(ReadPrompt)}}

    @router.post(
        "/tokens", tags=["requests"], response_model=None,
        openapi_extra={"requestBody": {"required": True, "content": schema}},
    )  # fmt: skip
    async def read_tokens(request: Request) -> Response:
        """The tokens of a prompt as a model reads it, and what is cut; `loaded` is false while the
        model is not in memory.
        """
        try:
            asked = from_json(ReadPrompt, await read_json(request))
            return JSONResponse(await run_in_threadpool(read_prompt, service, asked))
        except ValueError as error:
            raise to_failure(error, ReadPrompt) from None

    @router.get("/limits", tags=["service"], response_model=None)
    async def read_limits() -> Response:
        """What a client may ask at most."""
        return JSONResponse(to_json(service.limits))

    @router.post("/session", tags=["service"], status_code=204, response_model=None)
    async def open_session(request: Request) -> Response:
        """Give a page the cookie by which it is let in: the body is `{"key": ...}`."""
        body = await read_json(request)
        given = body.get("key") if isinstance(body, dict) else None
        key = service.settings.key
        if not isinstance(given, str) or (key and key_digest(given) != key_digest(key)):
            raise Failure(401, "the API key is missing or wrong", kind="authentication_error")
        response = Response(status_code=204)
        if key:
            response.set_cookie(
                COOKIE, session_token(key), httponly=True, samesite="strict", path="/"
            )
        return response


def _describe_request(service: Service, offered: Offered) -> dict[str, Any]:
    return {
        "name": offered.name,
        "url": f"/api/{offered.name}",
        "system": offered.title,
        "lane": offered.lane,
        "models": [model.name for model in service.offers.fitting_models(offered.serves)]
        if offered.serves
        else [],
        "presets": {name: to_json(preset) for name, preset in offered.presets.items()},
        "schema": schema_of(offered.kind),
    }

"""Shapes of answers and errors: one for each family of clients."""

from dataclasses import field
from typing import Any

from pydantic.dataclasses import dataclass

from triptych.server.jobs.carry_out import describe_file
from triptych.server.jobs.store import Event, Job
from triptych.server.service import Service


def error_body(
    path: str,
    status: int,
    message: str,
    kind: str,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """An error as the clients of a path read it: AUTOMATIC1111's below `/sdapi/`, else OpenAI's."""
    if path.startswith("/sdapi/"):
        return {"error": kind, "detail": message, "body": "", "errors": message}
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Failure(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}


def not_found(what: str) -> Failure:
    return Failure(404, f"there is no such {what}", kind="not_found_error", code="not_found")


@dataclass
class Picture:
    """A picture."""

    id: str
    url: str
    """Where its file is."""
    job: str | None
    kind: str
    """`upload`, `made`, or `shown` beside a result."""
    width: int
    height: int
    facts: dict[str, Any]
    """Such as its seed."""


@dataclass
class JobAnswer:
    """A job as it is now."""

    id: str
    number: int
    """Rises from job to job."""
    name: str
    """Of its request: the last part of its route."""
    state: str
    """waiting, running, cancelling, done, failed, cancelled or interrupted."""
    request: dict[str, Any]
    place: int | None
    """How many jobs run before it; null once it runs."""
    done: float | None
    """The share of its work that is done; null while it does not run."""
    created: float
    started: float | None
    finished: float | None
    run: str
    """Of a training: the name of its model."""
    result: dict[str, Any] | None
    """`values` and `pictures`."""
    error: dict[str, Any] | None
    links: dict[str, str] = field(default_factory=dict)


def describe_job(service: Service, job: Job) -> dict[str, Any]:
    """A job as answers have it."""
    place = service.jobs.place(job.id) if job.state == "waiting" else None
    result = job.result
    said: dict[str, Any] = {}
    if job.state in ("running", "cancelling"):
        said = service.jobs.done(job.id)
        pictures = [describe_file(file) for file in service.files.files_of(job.id)]
        steps = {name: said[name] for name in ("step", "steps") if name in said}
        result = {"values": steps, "pictures": pictures}
    links = {"self": f"/api/jobs/{job.id}", "events": f"/api/jobs/{job.id}/events"}
    return {
        "id": job.id, "number": job.number, "name": job.name, "state": job.state,
        "request": job.request, "place": place, "done": said.get("done"), "created": job.created,
        "started": job.started, "finished": job.finished, "run": job.run, "result": result,
        "error": job.error, "links": links,
    }  # fmt: skip


def describe_event(event: Event) -> dict[str, Any]:
    """The data of an event."""
    return {**event.data, "event": event.kind, "job": event.job, "time": event.time}

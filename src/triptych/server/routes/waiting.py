"""A client that waits for its job: the job is cancelled when the client leaves, whether it waits or
runs, and whether the answer is streamed or not.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from triptych.server.jobs.store import Event, Job
from triptych.server.routes.answers import Failure
from triptych.server.service import Service

LEFT = 499
"""Status for the log where nobody reads the answer."""
STOPPED = "the service was stopped: send the request again"


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def wait_for(service: Service, request: Request, job: Job) -> Job:
    """The job when it has ended.

    Raises:
        ClientLeft: the client went away; the job is cancelled.
        Failure: the job failed, was cancelled by another client, or the service stops.
    """
    ended = asyncio.ensure_future(service.feed.until_ended(job.id))
    left = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            raise ClientLeft
    finally:
        for task in (ended, left):
            task.cancel()
        end(service, job)
    return require_done(service.jobs.job(job.id))


def end(service: Service, job: Job) -> None:
    """Cancel a job of a client that is gone, if it has not ended."""
    with suppress(KeyError):
        service.workers.cancel(job.id)


def require_done(job: Job) -> Job:
    """The job, if it was carried out.

    Raises:
        Failure: it was not; says why.
    """
    if job.state == "done":
        return job
    if job.state == "failed":
        error = job.error or {}
        statuses = {"request": 400, "memory": 507, "disk": 507}
        status = statuses.get(str(error.get("type")), 500)
        kind = "invalid_request_error" if status == 400 else "server_error"
        # the same would fail again, after as long: clients must not repeat it by themselves
        raise Failure(
            status, str(error.get("message")), kind=kind, headers={"x-should-retry": "false"}
        )
    if job.state == "cancelled":
        raise Failure(
            409, "the job was cancelled", kind="conflict_error", code="cancelled",
            headers={"x-should-retry": "false"},
        )  # fmt: skip
    raise Failure(503, STOPPED, kind="server_error", headers={"retry-after": "5"})


class JobStream(StreamingResponse):
    """A stream of events, after which its job is over, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream")
        self.end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end()


async def follow(service: Service, job: Job) -> AsyncIterator[Event | None]:
    """The events of a job from its beginning; None where there was none for a while."""
    pause = service.limits.keep_alive_seconds
    async for event in service.feed.follow(0, job.id, pause):
        yield event


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""A real service on a real port, in this process, with tiny models."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from triptych.server.jobs.workers import Lane
from triptych.server.service import Service, open_service
from triptych.server.settings import Limits, Serve
from triptych.server.start import listen, make_server

EVERY_STEP = Limits(preview_seconds=0.0, unseen_seconds=0.0)
LONG = 300.0
"""Seconds after which a test that waits for an event gives up: far more than any load needs."""


@dataclass
class Running:
    """A service that answers."""

    service: Service
    url: str
    http: httpx2.Client

    def submit(self, name: str, **fields: Any) -> dict[str, Any]:
        """A job of a request that is taken."""
        answer = self.http.post(f"/api/{name}", json=fields)
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def events(self, job: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The events of a job until it ends, each with its number."""
        with self.http.stream("GET", f"/api/jobs/{job}/events", params={"after": after}) as stream:
            assert stream.status_code == 200
            yield from read_events(stream.iter_lines())

    def finish(self, job: str) -> dict[str, Any]:
        """The job when it has ended."""
        for _ in self.events(job):
            pass
        found: dict[str, Any] = self.http.get(f"/api/jobs/{job}").json()
        return found

    def made(self, name: str, **fields: Any) -> dict[str, Any]:
        """The job of a request that is carried out."""
        job = self.finish(self.submit(name, **fields)["id"])
        assert job["state"] == "done", job["error"]
        return job


def read_events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events, as `data` with `number`."""
    found: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "data":
            found |= json.loads(value)
        elif name == "id":
            found["number"] = int(value)
        elif not line and found:
            yield found
            found = {}


@contextlib.contextmanager
def run_service(
    home: Path,
    *,
    limits: Limits = EVERY_STEP,
    lanes: Sequence[Lane] | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serve until the end of the block."""
    chosen = Serve(home=home, port=0, **settings)
    listening = listen(chosen.host, 0)
    port = listening.getsockname()[1]
    with listening, open_service(chosen, limits, lanes) as service:
        server = make_server(service, port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until(lambda: server.started)
        url = f"http://127.0.0.1:{port}"
        headers = {"authorization": f"Bearer {chosen.key}"} if chosen.key else {}
        try:
            with httpx2.Client(base_url=url, headers=headers, timeout=LONG) as http:
                yield Running(service, url, http)
        finally:
            server.should_exit = True
            thread.join(LONG)
            assert not thread.is_alive()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something that will happen, however loaded the machine is."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def with_limits(**changes: Any) -> Limits:
    return replace(EVERY_STEP, **changes)

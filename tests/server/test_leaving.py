"""Clients that leave: their jobs stop, whether they wait or run, whether the answer is streamed."""

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from tests.server.running import Running, read_events, run_service, wait_until, with_limits
from triptych.server.jobs.carry_out import Outcome, Stop, Tools
from triptych.server.jobs.store import Job
from triptych.server.jobs.workers import Lane

PICTURE = {"prompt": "a red cat", "num_inference_steps": 150, "size": "64x64"}


def send(running: Running, path: str, body: dict) -> socket.socket:
    """A request whose answer is not read."""
    place = urlsplit(running.url)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection((place.hostname, place.port))
    connection.sendall(head.encode() + data)
    return connection


class Steps:
    """A worker whose steps a test allows one by one, and counts."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.taken = 0

    def carry_out(self, job: Job, tools: Tools, stop: Stop) -> Outcome:
        while True:
            self.allowed.acquire()
            self.taken += 1
            tools.tell(job, "progress", {"done": 0.1})
            if stop.event.is_set():
                return Outcome(stop.state)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_a_running_job_takes_no_step_after_the_next(offered, tmp_path, path, stream) -> None:
    """With all guards installed. The worker takes one step, the client leaves, the job is marked;
    the step that follows is its last.
    """
    steps = Steps()
    lanes = [Lane("draw", steps.carry_out)]
    with run_service(tmp_path, models=offered, lanes=lanes) as running:
        connection = send(running, path, PICTURE | {"stream": stream})
        steps.allowed.release()
        wait_until(lambda: steps.taken == 1)
        connection.close()
        (job,) = running.service.jobs.jobs()
        wait_until(lambda: running.service.jobs.job(job.id).state == "cancelling")
        steps.allowed.release()
        wait_until(lambda: running.service.jobs.job(job.id).state == "cancelled")
        assert steps.taken == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_waiting_job_never_runs(offered, tmp_path, stream) -> None:
    with run_service(tmp_path, models=offered, lanes=[]) as running:
        connection = send(running, "/v1/images/generations", PICTURE | {"stream": stream})
        wait_until(lambda: len(running.service.jobs.queue()) == 1)
        connection.close()
        wait_until(lambda: not running.service.jobs.queue())
        assert running.service.jobs.jobs()[0].state == "cancelled"


def test_a_closed_page_does_not_stop_its_job(served) -> None:
    """A job of our own route does not depend on who follows it; a second tab sees the same."""
    job = served.submit("text-to-image", prompt="a red cat", steps=5, seed=1)
    first = served.http.send(
        served.http.build_request("GET", f"/api/jobs/{job['id']}/events"), stream=True
    )
    next(read_events(first.iter_lines()))
    first.close()
    assert served.finish(job["id"])["state"] == "done"


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_dropped_connections_leave_nothing(offered, tmp_path, count) -> None:
    """In the queue, while it runs and while it streams: nothing is left."""
    steps = Steps()
    limits = with_limits(waiting=2000, waiting_per_client=2000)
    with run_service(
        tmp_path, models=offered, lanes=[Lane("draw", steps.carry_out)], limits=limits
    ) as running:
        threads = threading.active_count()
        for number in range(count):
            body = PICTURE | {"stream": number % 2 == 0}
            connection = send(running, "/v1/images/generations", body)
            if number % 3:
                wait_until(lambda: len(running.service.jobs.queue()) >= 1)
            if number % 5 == 0:
                steps.allowed.release()
            connection.close()

        def nothing_is_left() -> bool:  # a request may still be read when its client has left
            steps.allowed.release()
            if running.service.feed.waiting or threading.active_count() > threads:
                return False
            return not running.service.jobs.queue()

        wait_until(nothing_is_left)
        assert {job.state for job in running.service.jobs.jobs(limit=2000)} <= {"cancelled"}
        assert not list(running.service.places.results.iterdir())
        assert not list(running.service.places.uploads.iterdir())
        assert running.http.get("/healthz").status_code == 200


def test_a_hundred_clients_are_answered_or_told_to_come_back(tmp_path) -> None:
    """Fifty connections at once, twice: every answer is 202, 429 or 503, and those say when."""
    limits = with_limits(waiting=32, waiting_per_client=32)

    def carry_out(job: Job, tools: Tools, stop: Stop) -> Outcome:
        return Outcome("done", {"values": {}, "pictures": []})

    with run_service(tmp_path, lanes=[Lane("data", carry_out)], limits=limits) as running:
        answers: list[tuple[int, bool]] = []

        def call() -> None:
            for _ in range(2):
                place = urlsplit(running.url)
                connection = http.client.HTTPConnection(place.netloc, timeout=120)
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/api/check-data", '{"source": "digits"}', headers)
                answer = connection.getresponse()
                answer.read()
                answers.append((answer.status, bool(answer.getheader("Retry-After"))))
                connection.close()

        threads = [threading.Thread(target=call) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 100
        assert {status for status, _ in answers} <= {202, 429, 503}
        assert all(later for status, later in answers if status != 202)
        taken = sum(status == 202 for status, _ in answers)
        wait_until(lambda: not running.service.jobs.queue())
        jobs = running.service.jobs.jobs(limit=200)
        assert len(jobs) == taken and {job.state for job in jobs} == {"done"}


def test_too_many_connections_are_told_to_come_back(tmp_path) -> None:
    with run_service(tmp_path, lanes=[], limits=with_limits(connections=1)) as running:
        stream = running.http.send(running.http.build_request("GET", "/api/events"), stream=True)
        answer = running.http.get("/api/models")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "busy"
        assert running.http.get("/healthz").status_code == 200
        stream.close()

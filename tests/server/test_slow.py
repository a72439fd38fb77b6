"""Clients that are slow on purpose: each is given up, and others do not notice."""

import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.server.running import LONG, Running, run_service, wait_until, with_limits
from tests.server.test_leaving import send

MANY = [5, pytest.param(200, marks=pytest.mark.slow)]


def connect(running: Running, data: bytes) -> socket.socket:
    place = urlsplit(running.url)
    connection = socket.create_connection((place.hostname, place.port))
    connection.settimeout(LONG)
    connection.sendall(data)
    return connection


def head(running: Running, length: int) -> bytes:
    lines = ["POST /api/check-data HTTP/1.1", f"Host: {urlsplit(running.url).netloc}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("count", MANY)
def test_heads_that_do_not_come_are_given_up(tmp_path, count) -> None:
    with run_service(tmp_path, lanes=[], limits=with_limits(body_idle_seconds=0.2)) as running:
        whole = head(running, 0)
        starts = [whole[: 1 + number % (len(whole) - 2)] for number in range(count)]
        kept = connect(running, head(running, 2) + b"{}")
        assert kept.recv(100).startswith(b"HTTP/1.1 400")
        kept.sendall(b"GET /he")  # the second request of a connection
        slow = [connect(running, start) for start in starts]
        assert running.http.get("/healthz").status_code == 200
        for connection in slow:
            assert connection.recv(1) == b""
        while kept.recv(1000):
            pass


def test_a_body_that_stops_is_given_up(tmp_path) -> None:
    with run_service(tmp_path, lanes=[], limits=with_limits(body_idle_seconds=0.2)) as running:
        connection = connect(running, head(running, 100) + b"{")
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_a_body_that_trickles_is_given_up(tmp_path) -> None:
    """Each part comes in time, all together would take for ever."""
    limits = with_limits(body_idle_seconds=0.5, body_bytes_per_second=1000)
    with run_service(tmp_path, lanes=[], limits=limits) as running:
        connection = connect(running, head(running, 1_000_000))
        connection.setblocking(False)
        answer = b""
        while not answer:
            connection.send(b" ")
            time.sleep(0.05)
            try:
                answer = connection.recv(10_000)
            except BlockingIOError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")
        whole = b'{"source": "digits"}'
        assert (
            connect(running, head(running, len(whole)) + whole)
            .recv(100)
            .startswith(b"HTTP/1.1 202")
        )


def test_an_answer_that_nobody_reads_is_given_up(tmp_path) -> None:
    """A stream of more than the system keeps for a connection: its task ends."""
    with run_service(tmp_path, lanes=[], limits=with_limits(body_idle_seconds=0.2)) as running:
        job = running.submit("check-data", source="digits")
        for _ in range(24):
            running.service.jobs.append(job["id"], "row", {"text": "x" * (1 << 20)})
        place = urlsplit(running.url)
        request = f"GET /api/events HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode()
        connection = connect(running, request)
        assert connection.recv(1)
        wait_until(lambda: len(running.service.feed.waiting) == 1)
        wait_until(lambda: not running.service.feed.waiting)
        connection.close()
        assert running.http.get("/healthz").status_code == 200


def test_a_slow_client_keeps_no_other_from_its_answer(tmp_path) -> None:
    with run_service(tmp_path, lanes=[]) as running:
        slow = [send(running, "/api/check-data", {"source": "digits"}) for _ in range(3)]
        assert running.http.get("/api/queue").status_code == 200
        for connection in slow:
            assert connection.recv(100).startswith(b"HTTP/1.1 202")

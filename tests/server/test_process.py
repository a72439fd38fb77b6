"""The service as a process: started as the README says, stopped, and killed with a full queue."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.server.holding_service import CONTEXT, serve
from tests.server.running import LONG, read_events

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


@contextmanager
def start(*command: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A process that serves, once it has said where."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "http" in line)
        match = re.search(r"http://\S+", line)
        assert match is not None
        with httpx2.Client(base_url=match[0], timeout=LONG) as http:
            yield process, http
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_command_serves_and_stops(tmp_path) -> None:
    """On a real port, without torch until a model is needed; SIGTERM ends it with exit code 0."""
    with start("triptych", "serve", "--port", "0", "--home", str(tmp_path)) as (process, http):
        assert http.get("/readyz").json() == {"status": "ok"}
        assert "triptych_queue_depth" in http.get("/metrics").text
        assert http.get("/api/requests").status_code == 200
        maps = Path(f"/proc/{process.pid}/maps")
        assert not maps.exists() or "libtorch" not in maps.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0


@contextmanager
def hold_queue(home: Path) -> Iterator[httpx2.Client]:
    """A service that takes jobs and never ends one; it is killed at the end of the block."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=serve, args=(home, there))
    process.start()
    try:
        assert here.poll(LONG), "the service did not start"
        with httpx2.Client(base_url=here.recv(), timeout=LONG) as http:
            yield http
    finally:
        process.kill()
        process.join()


def kill_often(tmp_path: Path, kills: int, waiting: int = 20) -> None:
    """Each time exactly one job runs when the service is killed: it is interrupted, the others wait
    in their order, and nothing half-written is seen.
    """
    keys: list[str] = []
    for number in range(kills + 1):
        with hold_queue(tmp_path) as http:
            if not keys:
                for _ in range(waiting):
                    answer = http.post("/api/check-data", json={"source": "digits"})
                    keys.append(answer.json()["id"])
            with http.stream("GET", "/api/events") as stream:
                for event in read_events(stream.iter_lines()):
                    if event["event"] == "running" and event["job"] == keys[number]:
                        break
            states = {job["id"]: job["state"] for job in http.get("/api/jobs").json()}
            expected = ["interrupted"] * number + ["running"]
            expected += ["waiting"] * (waiting - number - 1)
            assert [states[key] for key in keys] == expected
            queue = [job["id"] for job in http.get("/api/queue").json()]
            assert queue == keys[number:]


def test_killed_with_a_full_queue(tmp_path) -> None:
    kill_often(tmp_path, 5)


@pytest.mark.slow
def test_killed_twenty_times_with_a_full_queue(tmp_path) -> None:
    kill_often(tmp_path, 20, waiting=24)

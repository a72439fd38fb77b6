"""Much more than the service can do, for as long as LOAD_SECONDS says: it answers or refuses, and
nothing is left of it. Loopback only.
"""

import os
import re
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.server.running import LONG
from tests.server.test_process import start

SECONDS = float(os.environ.get("LOAD_SECONDS", "60"))
PICTURE = {"prompt": "a red cat", "num_inference_steps": 1, "size": "16x16", "model": "painter"}


def resident(process: int) -> int:
    """Kilobytes of memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def files(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


@pytest.mark.slow
@pytest.mark.parametrize("clients", [50, 500])
def test_overload_is_answered_with_200_429_or_503_and_leaves_nothing(
    models, tmp_path, clients
) -> None:
    """All of what is taken is finished; memory after the first third grows by less than 5 %."""
    place = str(models / "runs" / "painter")
    command = ("triptych", "serve", "--port", "0", "--home", str(tmp_path), "--models", place)
    with start(*command) as (process, http):
        assert http.post("/v1/images/generations", json=PICTURE).status_code == 200
        opened = files(process.pid)
        answers: Counter[int] = Counter()
        wrong: list[str] = []
        lock, ended = threading.Lock(), threading.Event()

        def call() -> None:
            with httpx2.Client(base_url=http.base_url, timeout=LONG) as client:
                while not ended.is_set():
                    answer = client.post("/v1/images/generations", json=PICTURE)
                    with lock:
                        answers[answer.status_code] += 1
                        if answer.status_code != 200 and "retry-after" not in answer.headers:
                            wrong.append(answer.text)
                    if answer.status_code != 200:
                        ended.wait(0.05)

        threads = [threading.Thread(target=call) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 3)
        early = resident(process.pid)
        assert http.get("/healthz").status_code == 200
        time.sleep(2 * SECONDS / 3)
        late = resident(process.pid)
        ended.set()
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 429, 503} and answers[200] and not wrong, (answers, wrong[:3])
        assert http.get("/api/queue").json() == []
        made = http.get("/metrics").text
        route = 'triptych_requests_total{route="/v1/images/generations",status="200"}'
        assert f"{route} {float(answers[200] + 1)}" in made
        assert late < 1.05 * early, (early, late)
        end = time.monotonic() + LONG
        while files(process.pid) > opened:
            assert time.monotonic() < end, os.listdir(f"/proc/{process.pid}/fd")
            time.sleep(0.1)

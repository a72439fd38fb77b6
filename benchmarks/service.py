"""What the service costs: over the library, while it draws, and under load. Loopback only.

    python benchmarks/service.py overhead --pairs 20     one request against the library, in turns
    python benchmarks/service.py health --seconds 20     /healthz while pictures are drawn
    python benchmarks/service.py preview                 from the click to the first preview
    python benchmarks/service.py load --seconds 60       500 clients: ten times what it can draw
    python benchmarks/service.py steady --seconds 600    50 clients that wait for their answers

The service runs in a process of its own, on a free port, with the models of the
package. JSON lines.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import measure
import torch

import triptych
from triptych.requests import ClassToImage, TextToImage
from triptych.runtime import is_small

PICTURE = {"prompt": "red apple", "model": "emoji"}
DIGIT = {"prompt": "7", "model": "digits-cvae"}


class Served:
    """A service that answers."""

    def __init__(self, process: "subprocess.Popen[str]", url: str):
        self.process, self.url = process, url
        # kept for less than the service keeps them: no request meets a connection that is closing
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
        )
        self.http = httpx2.Client(base_url=url, timeout=600, limits=limits)

    def resident(self) -> float:
        """Megabytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def files(self) -> int:
        """Open files and connections."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def draw(self, **fields: Any) -> httpx2.Response:
        return self.http.post("/v1/images/generations", json=PICTURE | fields)


@contextlib.contextmanager
def serve() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "triptych", "serve", "--port", "0", "--home", home]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # never full
        try:
            yield Served(process, url)
        finally:
            process.terminate()
            process.wait(60)


def milliseconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def overhead(pairs: int) -> None:
    """A request by OpenAI's route against the pipeline alone, with a small and a usual picture; the
    library with as many threads as the service takes for it, and with all.
    """
    every = torch.get_num_threads()
    requests = {
        "digit": (ClassToImage("digits-cvae", "7", n=1, seed=1), DIGIT),
        "picture": (TextToImage("red apple", model="emoji", seed=1), PICTURE),
    }
    with serve() as served:
        for name, (request, body) in requests.items():
            loaded = triptych.load(request.model)
            threads = 1 if is_small(loaded.model, 1) else every

            def ask(body: dict[str, Any] = body) -> float:
                return milliseconds(lambda: served.draw(**body, seed=1).raise_for_status())

            def draw(threads: int, request: Any = request, loaded: Any = loaded) -> float:
                torch.set_num_threads(threads)
                return milliseconds(lambda: list(triptych.run(request, loaded)))

            contenders = [ask, partial(draw, threads), partial(draw, every)]
            measure.turns(contenders, 2)
            ours, alone, by_all = measure.turns(contenders, pairs)
            more = [a - b for a, b in zip(ours, alone, strict=True)]
            picture = statistics.median(alone)
            low, high = measure.interval(more)
            measure.emit(
                what=f"overhead, {name}", service_ms=statistics.median(ours), threads=threads,
                library_ms=picture, library_all_threads_ms=statistics.median(by_all),
                more_ms=statistics.median(more), low=low, high=high,
                share=statistics.median(more) / picture, pairs=pairs,
            )  # fmt: skip


@contextlib.contextmanager
def drawing(served: Served) -> Iterator[None]:
    """Pictures are drawn all the time."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            served.draw(n=4)

    thread = threading.Thread(target=go_on)
    served.draw()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def watch_health(served: Served, ended: threading.Event) -> list[float]:
    """Milliseconds of `/healthz`, on a new connection each time, twenty times a second."""
    place = urlsplit(served.url).netloc

    def ask() -> None:
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()

    times = []
    while not ended.wait(0.05):
        times.append(milliseconds(ask))
    return times


def health(seconds: float) -> None:
    with serve() as served, drawing(served):
        ended = threading.Event()
        threading.Timer(seconds, ended.set).start()
        times = watch_health(served, ended)
    measure.emit(
        what="healthz while drawing", p50_ms=quantile(times, 0.5), p99_ms=quantile(times, 0.99),
        calls=len(times),
    )  # fmt: skip


def preview(times: int = 5) -> None:
    """From the request to the first preview, and to the finished picture."""
    with serve() as served:
        for turn in range(times):
            began = time.perf_counter()
            job = served.http.post("/api/text-to-image", json=PICTURE).json()
            first = None
            with served.http.stream("GET", f"/api/jobs/{job['id']}/events") as stream:
                for line in stream.iter_lines():
                    if line == "event: preview" and first is None:
                        first = 1000 * (time.perf_counter() - began)
            measure.emit(
                what="first preview", loaded=turn > 0, preview_ms=first,
                picture_ms=1000 * (time.perf_counter() - began),
            )  # fmt: skip


def load(seconds: float, clients: int, patient: bool) -> None:
    """Clients that are answered or refused. All together they ask ten times as often as the service
    can draw; with `patient` they ask again when they have their answer, or when they are told to.
    """
    answers: Counter[int] = Counter()
    refusals: list[float] = []
    lock, ended = threading.Lock(), threading.Event()
    with serve() as served:
        served.draw()  # loads the model
        alone = statistics.median(milliseconds(served.draw) for _ in range(5))
        before = (served.resident(), served.files())
        pause = 0.0 if patient else clients * alone / 1000 / 10

        def call(number: int) -> None:
            ended.wait(pause * number / clients)  # not all of them in the first second
            while not ended.is_set():
                began = time.perf_counter()
                answer = served.draw()
                took = time.perf_counter() - began
                with lock:
                    answers[answer.status_code] += 1
                    if answer.status_code != 200:
                        refusals.append(1000 * took)
                wait = float(answer.headers["retry-after"]) if answer.status_code != 200 else 0.0
                ended.wait(wait if patient else pause - took)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        threading.Timer(seconds, ended.set).start()
        healths = watch_health(served, ended)
        middle = served.resident()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        left = served.http.get("/api/queue").json()
        after = (served.resident(), served.files())
    assert set(answers) <= {200, 429, 503}, answers
    measure.emit(
        what="steady" if patient else "overload", clients=clients, seconds=took,
        answers=json.dumps(answers, sort_keys=True), left_in_queue=len(left),
        refusal_p99_ms=quantile(refusals, 0.99), health_p99_ms=quantile(healths, 0.99),
        throughput=answers[200] / took / (1000 / alone),
        resident_mb=[round(before[0]), round(middle), round(after[0])],
        files=[before[1], after[1]],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["overhead", "health", "preview", "load", "steady"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=0, help="500 of load, 50 of steady")
    options = parser.parse_args()
    measure.emit(**measure.machine())
    if options.what == "overhead":
        overhead(options.pairs)
    elif options.what == "health":
        health(options.seconds)
    elif options.what == "preview":
        preview()
    else:
        patient = options.what == "steady"
        load(options.seconds, options.clients or (50 if patient else 500), patient)


if __name__ == "__main__":
    main()

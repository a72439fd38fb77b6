"""Threads that take jobs: one for each device, one for trainings, one for checks of data."""

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from triptych.server.jobs.carry_out import Outcome, Stop, Tools, carry_out, check_data
from triptych.server.jobs.store import Job, State
from triptych.server.jobs.training import train

CarryOut = Callable[[Job, Tools, Stop], Outcome]
PAUSE = 60.0
"""Seconds after which a worker looks for work even if nobody said that there is some."""


@dataclass(frozen=True)
class Lane:
    """One worker: the jobs that it takes, and how it carries them out."""

    name: str
    carry_out: CarryOut


def lanes(devices: Sequence[str]) -> list[Lane]:
    """One worker a device, one that trains, one that checks data."""
    drawing = [Lane("draw", partial(carry_out, device=device)) for device in devices]
    return [*drawing, Lane("train", train), Lane("data", check_data)]


class Workers:
    """All workers, and how to stop a job."""

    def __init__(self, tools: Tools, lanes: Sequence[Lane]):
        self.tools = tools
        self.lock = threading.Lock()
        self.running: dict[str, Stop] = {}
        self.closing = False
        self.threads = [
            threading.Thread(
                target=self._work, args=(lane,), name=f"{lane.name}-worker", daemon=True
            )
            for lane in lanes
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def cancel(self, key: str) -> State:
        """Cancel a job: at once if it waits, at its next step if it runs.

        Returns:
            Its state; of a job that has ended, the one it ended in.

        Raises:
            KeyError: there is no such job.
        """
        state = self.tools.jobs.cancel(key)
        with self.lock:
            if state == "cancelling" and key in self.running:
                self.running[key].event.set()
        self.tools.feed.notify(ended=True)
        return state

    def stop(self) -> None:
        """Interrupt what runs, at its next step, and take nothing more; the queue stays."""
        with self.lock:
            self.closing = True
            for stop in self.running.values():
                if not stop.event.is_set():
                    stop.state = "interrupted"
                    stop.event.set()
        self.tools.feed.notify(work=True)

    def join(self, seconds: float = 30.0) -> None:
        """Wait for the workers to end."""
        for thread in self.threads:
            thread.join(seconds)

    def _work(self, lane: Lane) -> None:
        feed = self.tools.feed
        while True:
            version = feed.version
            with self.lock:
                if self.closing:
                    return
                job = self.tools.jobs.take(lane.name)
                if job is not None:
                    stop = self.running[job.id] = Stop()
            if job is None:
                with feed.changed:
                    if feed.version == version:
                        feed.changed.wait(PAUSE)
                continue
            feed.notify()
            self.tools.figures.note_start(job)
            try:
                outcome = lane.carry_out(job, self.tools, stop)
                self.tools.figures.note_end(job, outcome.state)
                self.tools.jobs.end(job.id, outcome.state, outcome.result, outcome.error)
            except Exception:  # the database cannot be written; the next job may be luckier
                traceback.print_exc()
            with self.lock:
                del self.running[job.id]
            feed.notify(ended=True)

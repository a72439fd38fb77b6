"""A training as a job: in a process of its own with lower priority, so that drawing goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from triptych.fields import to_json
from triptych.server.catalog import offered_requests
from triptych.server.jobs.carry_out import (
    UNEXPECTED,
    Outcome,
    Stop,
    Tools,
    describe_file,
    guard,
)
from triptych.server.jobs.inputs import Resolved
from triptych.server.jobs.store import Job

STEP = re.compile(r"(\d+)")


def train(job: Job, tools: Tools, stop: Stop) -> Outcome:
    """Train until the end, or until the job is stopped: then the last step is saved, and the same
    request goes on from there.
    """
    return guard(job, tools, lambda resolved: _train(job, tools, stop, resolved), places=True)


def _train(job: Job, tools: Tools, stop: Stop, resolved: Resolved) -> Outcome:
    run = tools.places.runs / job.run
    resolved.private[str(run)] = job.run
    process = _start(tools.places.home / "training.log")
    ended = threading.Event()
    watcher = threading.Thread(target=_end_on_stop, args=(process, stop, ended), daemon=True)
    watcher.start()
    try:
        return _follow(job, tools, stop, resolved, process, run)
    finally:
        ended.set()
        stop_waiting = process.poll() is None
        if stop_waiting:  # we failed, not the training: nobody would follow it
            process.send_signal(signal.SIGTERM)
        process.wait()


def _start(log: Path) -> "subprocess.Popen[str]":
    """A process that reads what to train from stdin, and says on stdout how it goes."""
    command = [sys.executable, "-m", "triptych.server.jobs.train_process"]
    with log.open("a") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,  # Ctrl-C is for the service, which asks the training to stop
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip


def _end_on_stop(process: "subprocess.Popen[str]", stop: Stop, ended: threading.Event) -> None:
    while not ended.is_set():
        if stop.event.wait(0.05):
            process.send_signal(signal.SIGTERM)
            return


def _follow(
    job: Job,
    tools: Tools,
    stop: Stop,
    resolved: Resolved,
    process: "subprocess.Popen[str]",
    run: Path,
) -> Outcome:
    assert process.stdin is not None and process.stdout is not None
    recipe = offered_requests()[job.name].recipe
    work = {"recipe": recipe, "request": to_json(resolved.request), "run": str(run)}
    with process.stdin as stdin:
        json.dump(work, stdin)
    values: dict[str, Any] = {"run": job.run}
    error = None
    with process.stdout as lines:
        for line in lines:
            said = json.loads(line)
            kind, data = said["kind"], said["data"]
            if kind == "error":
                error = data | {"message": resolved.say(data["message"])}
            elif kind == "sample":
                _tell_sample(job, tools, run / "samples" / data["file"])
            elif kind == "notes":
                tools.tell(job, kind, {"notes": [resolved.say(note) for note in data["notes"]]})
            else:
                tools.tell(job, kind, resolved.hide(data))
                values |= {"row": data} if kind == "row" else {}
    code = process.wait()
    pictures = [describe_file(file) for file in tools.files.files_of(job.id)]
    result = {"values": values, "pictures": pictures}
    if code == 0:
        return Outcome("done", result)
    if stop.event.is_set() and code in (143, -signal.SIGTERM):
        return Outcome(stop.state, result)
    return Outcome("failed", result, error or {"type": "unexpected", "message": UNEXPECTED})


def _tell_sample(job: Job, tools: Tools, path: Path) -> None:
    """A grid of samples, once."""
    place = str(path.relative_to(tools.places.home))
    if tools.files.file_at(place) is not None:
        return
    from triptych.vision.images import read_header

    header = read_header(path.read_bytes())
    step = STEP.search(path.stem)
    facts = {"shows": "samples", "step": int(step[1]) if step else 0}
    size = (header.width, header.height)
    file = tools.files.add_file(place, size, job=job.id, kind="shown", facts=facts)
    tools.tell(job, "sample", describe_file(file))

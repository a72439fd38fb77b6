"""The process of one training: reads the request from stdin, writes what happens to stdout.

Each line is a JSON object: `kind` (notes, progress, row, sample, error) and `data`. SIGTERM, or a
closed stdout, ends it after the step, with a checkpoint.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

NICE = 10
EVERY = 0.25
"""Seconds between two lines of progress."""
STOPPED = 143


def main() -> int:
    """Returns the exit code: 0, 143 if stopped, else 1 after an error."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    os.nice(NICE)
    work = json.load(sys.stdin)
    try:
        return _train(work, stopped)
    except BrokenPipeError:  # the service is gone; the last step is saved
        sys.stdout = None  # type: ignore[assignment]
        return STOPPED
    except Exception as error:
        import traceback

        from triptych.server.jobs.carry_out import describe_failure

        traceback.print_exception(error)
        say("error", describe_failure(error))
        return 1


def say(kind: str, data: dict[str, Any]) -> None:
    """One line for the service."""
    print(json.dumps({"kind": kind, "data": data}), flush=True)


def _train(work: dict[str, Any], stopped: list[int]) -> int:
    from triptych.fields import from_json
    from triptych.systems import RECIPES
    from triptych.training import train

    recipe, run = work["recipe"], Path(work["run"])
    kind = type(next(iter(RECIPES[recipe].recipes[recipe].values())))
    request: Any = from_json(kind, work["request"])
    total = request.training.steps
    say("progress", {"done": 0.0, "step": 0, "steps": total})
    last, shown, notes = 0.0, set[str](), list[str]()
    steps = train(request, run)
    for report in steps:
        now = time.monotonic()
        if report.row or now - last > EVERY:
            last = now
            terms = {name: float(value) for name, value in report.terms.items()}
            data = {"done": report.step / total, "step": report.step, "steps": total}
            say("progress", data | {"terms": _finite(terms)})
        if report.note:
            notes += report.note.split("\n")
            say("notes", {"notes": notes})
        if report.row:
            say("row", _finite(report.row))
        for file in sorted((run / "samples").glob("*.png")):
            if file.name not in shown:
                shown.add(file.name)
                say("sample", {"file": file.name})
        if stopped and report.step < total:
            steps.close()  # saves
            return STOPPED
    return 0


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    plain = {}
    for name, value in row.items():
        if isinstance(value, float) and (value != value or abs(value) == float("inf")):
            value = None
        plain[name] = value
    return plain


if __name__ == "__main__":
    sys.exit(main())

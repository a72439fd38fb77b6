"""Threads and how they wait: CPU time and time of a training step, by recipe.

The rule of `triptych.runtime.is_small` follows from these figures: below `SMALL` parameters times
examples, one thread. On idle cores the time counts, beside other programs the CPU time.

    python benchmarks/threads.py                        every recipe below, JSON lines
    python benchmarks/threads.py --recipes cvae clip    some of them
    python benchmarks/threads.py --busy 2               beside two processes that do nothing else
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import measure
import torch

from triptych.cli.threads import CHOICES, SHORT, SPINS
from triptych.runtime import SMALL
from triptych.systems import RECIPES
from triptych.train.loop import fit
from triptych.training import build

BATCHES = {
    "cvae": 128, "wgan": 64, "classifier": 128, "pixel-diffusion": 64, "clip": 64,
    "text-to-image": 16,
}  # fmt: skip
SPIN = "while True: pass"


def time_steps(recipe: str, threads: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step, and of CPU time, after three steps that are not counted."""
    torch.set_num_threads(threads)
    request = next(iter(RECIPES[recipe].recipes[recipe].values()))
    never = 10**9
    training = replace(
        request.training, steps=never, sample_every=0, save_every=never, log_every=never,
        batch_size=BATCHES[recipe], device="cpu", evaluate_every=0,
    )  # fmt: skip
    made = build(replace(request, training=training))
    parameters = sum(p.numel() for p in made.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        work = fit(replace(made, sample=None, evaluate=None), training, Path(folder))
        for _ in range(3):
            next(work)
        cpu, clock = time.process_time(), time.monotonic()
        for _ in range(steps):
            next(work)
        cpu, clock = time.process_time() - cpu, time.monotonic() - clock
    return {"work": parameters * BATCHES[recipe], "ms": 1000 * clock / steps,
            "cpu_ms": 1000 * cpu / steps}  # fmt: skip


def compare(recipe: str, steps: int, turns: int, most: int) -> dict[str, object]:
    """The least of some turns of each setting, taken in turns."""
    ours = {SPINS: SHORT}
    settings = [
        ("one thread", 1, ours),
        (f"{most} threads", most, ours),
        (f"{most} threads, asleep at once", most, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (f"{most} threads, OpenMP's default", most, {}),
    ]
    found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in settings}
    for _ in range(turns):
        for name, threads, how in settings:
            words = [sys.executable, __file__, "--one", recipe, str(threads), str(steps)]
            environment = {k: v for k, v in os.environ.items() if k not in CHOICES} | how
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=True
            )
            found[name].append(json.loads(done.stdout))
    best = {
        name: {key: round(min(one[key] for one in many), 2) for key in ("ms", "cpu_ms")}
        for name, many in found.items()
    }
    work = found["one thread"][0]["work"]
    return {"recipe": recipe, "work": work, "rule": 1 if work < SMALL else most, **best}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipes", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        recipe, threads, steps = options.one
        print(json.dumps(time_steps(recipe, int(threads), int(steps))))
        return
    print(json.dumps({"machine": measure.machine(), "busy": options.busy}), flush=True)
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(options.busy)]
    try:
        for recipe in options.recipes:
            row = compare(recipe, options.steps, options.turns, options.threads)
            print(json.dumps(row), flush=True)
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()

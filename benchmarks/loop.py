"""What `fit` adds to a training step: a network that does nothing, data in memory.

The bare step is the least that trains at all: zero the gradients, objective, backward, optimizer.
`fit` does that and the rest: seeding, exact accumulation, the gradient's norm and the check that it
is finite, rates, the average of the weights, the journal. Checkpoints are measured apart.

    python benchmarks/loop.py            JSON lines
    python benchmarks/loop.py profile    where the time goes
"""

import cProfile
import itertools
import pstats
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import measure
import torch
from torch import nn

from triptych.nn.loss import Loss
from triptych.requests import Training
from triptych.train import checkpoint
from triptych.train.loop import fit
from triptych.train.recipe import Batch, Recipe, Update

STEPS = 400
PAIRS = 20


def recipe() -> Recipe:
    """One weight, one number in, one out."""
    model = nn.Linear(1, 1, bias=False)
    data: Batch = {"image": torch.ones(1, 1)}

    def objective(batch: Batch, step: int) -> Loss:
        total = model(batch["image"]).sum()
        return Loss(total, 1, {"term": total.detach()})

    def batches(start: int) -> Iterator[Batch]:
        return itertools.repeat(data)

    update = Update("", model, torch.optim.AdamW(model.parameters(), fused=True), objective)
    export = partial(checkpoint.export, card={})
    return Recipe(model=model, exported=model, updates=[update], batches=batches, export=export)


def bare() -> float:
    """Milliseconds of a step written plainly."""
    system = recipe()
    (update,) = system.updates
    data = system.batches(0)
    began = 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first one makes the optimizer's state
            began = time.perf_counter()
        update.optimizer.zero_grad(set_to_none=True)
        loss = update.objective(next(data), step)
        loss.total.backward()
        update.optimizer.step()
    return (time.perf_counter() - began) / STEPS * 1e3


def fitted(run: Path, log_every: int, ema_halflife: float) -> float:
    """Milliseconds of a step of `fit`; the last, which saves, is left out."""
    shutil.rmtree(run, ignore_errors=True)
    training = Training(
        steps=STEPS + 2, save_every=10 * STEPS, log_every=log_every, ema_halflife=ema_halflife
    )
    began = 0.0
    for report in fit(recipe(), training, run):
        if report.step == 1:
            began = time.perf_counter()
        if report.step == STEPS + 1:
            return (time.perf_counter() - began) / STEPS * 1e3
    raise AssertionError


def saving(run: Path) -> float:
    """Milliseconds of a save and the export beside it, disk included."""
    shutil.rmtree(run, ignore_errors=True)
    training = Training(steps=42, save_every=2, log_every=1, ema_halflife=10)
    spent: list[list[float]] = [[], []]
    before = 0.0
    for report in fit(recipe(), training, run):
        now = time.perf_counter()
        if 2 < report.step < 42:
            spent[report.saved is not None].append((now - before) * 1e3)
        before = time.perf_counter()
    return statistics.median(spent[1]) - statistics.median(spent[0])


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if sys.argv[1:] == ["profile"]:
            fitted(run, 20, 10)  # imports
            profile = cProfile.Profile()
            profile.runcall(fitted, run, 20, 10)
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
            return
        measure.emit(machine=measure.machine())
        settings = {
            "default": (20, 0.0),
            "averaged weights": (20, 10.0),
            "row every step": (1, 10.0),
        }
        for name, (log_every, ema_halflife) in settings.items():
            fitted(run, log_every, ema_halflife), bare()
            ours, plain = measure.pairs(
                lambda log=log_every, ema=ema_halflife: fitted(run, log, ema), bare, PAIRS
            )
            added = [a - b for a, b in zip(ours, plain, strict=True)]
            low, high = measure.interval(added)
            measure.emit(
                what="fit adds to a step, checkpoints excluded", settings=name, pairs=PAIRS,
                steps=STEPS, bare_ms=statistics.median(plain), fit_ms=statistics.median(ours),
                added_ms=statistics.median(added), low_ms=low, high_ms=high, target_ms=1.0,
            )  # fmt: skip
        measure.emit(
            what="a checkpoint of 1 weight with its average, its moments and the export",
            ms=statistics.median(saving(run) for _ in range(3)),
        )


if __name__ == "__main__":
    main()

"""The training loop, read from top to bottom. Every system trains through it.

A step is a short list of updates: one for most systems, critic then generator for a GAN.
Randomness and the position in the data are functions of (seed, rank, step), so a checkpoint is
tensors and a step count, and a resumed run repeats an uninterrupted one exactly.

`fit` is a generator: bars, previews and cancellation belong to the caller. Closing it saves.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.data.order.batches import Batches, write_skipped
from triptych.runtime import key
from triptych.train import checkpoint
from triptych.train.distributed import ALONE, World
from triptych.train.journal import Journal
from triptych.train.optimizer import Ema, rate_factor
from triptych.train.recipe import Batch, Recipe, Update
from triptych.train.settings import Training
from triptych.vision.images import save_picture

PATIENCE = 5  # steps in a row without a finite update before training is called diverged


class Report(NamedTuple):
    """What one step did."""

    step: int
    terms: dict[str, float]  # this step's loss terms
    row: dict[str, Any] | None  # what went into metrics.jsonl at this step
    saved: Path | None


def fit(
    recipe: Recipe, training: Training, run: Path, world: World = ALONE
) -> Generator[Report, None, None]:
    """Train in a run folder, from its newest good checkpoint if it has one.

    Of several processes (`train/distributed.py`) the first draws, judges and writes. All must stop
    after the same step.

    Raises:
        FloatingPointError: five steps in a row gave no finite update; the last checkpoint stands.
        ValueError: the data is unusable, or the checkpoint does not fit the recipe.
        Elsewhere: another process failed and says why.
        RuntimeError: the processes do not hold the same weights.
    """
    device = next(recipe.model.parameters()).device
    ema = Ema(recipe.exported, training.ema_halflife) if training.ema_halflife else None
    for update in recipe.updates:
        for group in update.optimizer.param_groups:
            group["base_lr"] = group["lr"]
    state = world.together(lambda: _resume(run, recipe, ema))
    start, window = state["step"], Window(state["window"])
    world.require_same(recipe.model.parameters(), start)
    journal = _journal(run, state["offset"]) if world.first else None
    data = recipe.batches(start * training.accumulate * sum(u.batches for u in recipe.updates))
    shown = ema.module if ema else recipe.exported
    precision = runtime.precision(training.precision, device)
    began = time.monotonic() - state["seconds"]
    unread: dict[str, str] = {}  # by all processes

    def save(step: int) -> Path | None:
        if journal is None:
            return None
        # "failed" belongs here: patience with a run that diverges must outlive a resume.
        remembered = {
            "step": step, "offset": journal.sync(), "seconds": time.monotonic() - began,
            "window": window.state, "skipped": state["skipped"], "failed": state["failed"],
        }  # fmt: skip
        # The checkpoint last: a run counts as finished by it, and its export must be there then.
        if recipe.beside:
            recipe.beside(run)
        whole = recipe.finished(shown) if recipe.finished else shown
        card = recipe.card(whole) if callable(recipe.card) else recipe.card
        checkpoint.export(run, whole, card)
        if recipe.further:
            recipe.further(run, shown)
        path = checkpoint.save(run, step, _tensors(recipe, ema), remembered, training.keep)
        if skipped := unread | _unread(data):
            write_skipped(run / "skipped.jsonl", skipped)
        return path

    step, saved = start, True
    buffers = list(recipe.model.buffers())
    recipe.model.train()
    try:
        for step in range(start + 1, training.steps + 1):
            _seed(key(training.seed, world.rank, step), device)
            factor = rate_factor(training, step - 1)
            terms: dict[str, float] = {}
            finite = True
            seen: list[Batch] = []
            for update in recipe.updates:
                for group in update.optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                for repeat in range(update.repeat):
                    if update.data == "each" or (update.data == "once" and repeat == 0):
                        seen = [_to(next(data), device) for _ in range(training.accumulate)]
                    kept = [buffer.clone() for buffer in buffers]
                    terms |= (measured := descend(update, seen, step, precision, world))
                    if measured["finite"] == 0.0:  # nor may a running mean learn from it
                        finite = False
                        for buffer, before in zip(buffers, kept, strict=True):
                            buffer.copy_(before)
            terms.pop("finite")
            saved = False

            state["failed"] = 0 if finite else state["failed"] + 1
            state["skipped"] += not finite
            if state["failed"] >= PATIENCE:
                raise FloatingPointError(
                    f"no finite update in {PATIENCE} steps, up to step {step}: training diverged. "
                    "The last checkpoint is intact; lower the learning rate or raise the warm-up"
                )
            if ema:
                ema.update(step)

            last = step == training.steps
            row: dict[str, Any] | None = None
            if finite:
                window.add(terms)
            if step % training.log_every == 0 or last:
                row = {"step": step, **window.means(), "rate": factor, "skipped": state["skipped"]}
                window = Window([])
            if journal and recipe.evaluate and (last or _due(step, training.evaluate_every)):
                row = (row or {"step": step}) | recipe.evaluate(shown.eval())
                recipe.model.train()
            if journal and row:
                journal.write(row | {"seconds": round(time.monotonic() - began, 3)})
            if journal and recipe.sample and (last or _due(step, training.sample_every)):
                grid = recipe.sample(shown.eval())
                save_picture(run / "samples" / f"step-{step:06d}.png", grid, {"step": step})
                recipe.model.train()
            path = None
            if last or step % training.save_every == 0:
                world.require_same(recipe.model.parameters(), step)
                for theirs in world.gathered(_unread(data)):
                    unread |= theirs
                path, saved = save(step), True
            yield Report(step, terms, row, path)
    except GeneratorExit:  # the caller stops: a finished step is never lost
        if not saved:
            save(step)
        raise
    finally:
        if journal:
            journal.close()


def descend(
    update: Update, batches: Sequence[Batch], step: int, precision: str, world: World = ALONE
) -> dict[str, float]:
    """One optimizer step over the exact mean of several batches, and of all processes' batches;
    skipped where it is not finite.

    Returns the mean terms, `loss`, the gradient's norm before clipping, and `finite`: 1 or 0.
    """
    update.optimizer.zero_grad(set_to_none=True)
    moving = [p for p in update.module.parameters() if p.requires_grad]
    sums: Tensor | None = None
    names: list[str] = []
    count: float | Tensor = 0
    for batch in batches:
        with torch.autocast(_device_type(update.module), torch.bfloat16, precision == "bfloat16"):
            loss = update.objective(batch, step)
        loss.total.backward(inputs=moving)  # and not into a critic that only looks on
        names = list(loss.terms)
        means = [term.detach().float() * loss.count for term in loss.terms.values()]
        row = torch.stack([loss.total.detach().float(), *means])
        sums = row if sums is None else sums + row
        count = count + loss.count
    assert sums is not None
    if world.size > 1:
        whole = torch.cat([sums, torch.as_tensor(count).to(sums)[None]])
        world.add_up_gradients(moving, whole)
        sums, count = whole[:-1], whole[-1]
    gradients = [p.grad for p in moving if p.grad is not None]
    torch._foreach_div_(gradients, count)  # the mean over items, not micro-batches or ranks
    norm = nn.utils.get_total_norm(gradients)
    total, *values, size = torch.cat([sums / count, norm[None]]).tolist()  # the step's one wait
    finite = all(abs(value) < float("inf") for value in (total, size))
    if finite:
        if update.max_norm is not None and size > update.max_norm:
            torch._foreach_mul_(gradients, update.max_norm / size)
        update.optimizer.step()
    named = dict(zip(names, values, strict=True))
    prefix = f"{update.name}_" if update.name else ""
    return {f"{prefix}loss": total, **named, f"{prefix}norm": size, "finite": float(finite)}


class Window:
    """Means of the terms since the last row. Its state travels with the checkpoint, so rows are
    exact.
    """

    def __init__(self, state: list[Any]):
        self.sums: dict[str, float] = dict(state[1]) if state else {}
        self.count: int = state[0] if state else 0

    @property
    def state(self) -> list[Any]:
        return [self.count, self.sums] if self.count else []

    def add(self, terms: dict[str, float]) -> None:
        self.count += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}


def _journal(run: Path, offset: int) -> Journal:
    (run / "samples").mkdir(parents=True, exist_ok=True)
    return Journal(run / "metrics.jsonl", offset)


def _unread(data: Iterator[Batch]) -> dict[str, str]:
    return data.skipped if isinstance(data, Batches) else {}


def _resume(run: Path, recipe: Recipe, ema: Ema | None) -> dict[str, Any]:
    path, _ = checkpoint.newest(run)
    if path is None:
        return {"step": 0, "offset": 0, "seconds": 0.0, "window": [], "skipped": 0, "failed": 0}
    found = checkpoint.load(path)
    expected = _tensors(recipe, ema)
    if found.tensors.keys() - {u.file for u in recipe.updates} != (
        expected.keys() - {u.file for u in recipe.updates}
    ):
        raise ValueError(f"{path} holds {sorted(found.tensors)}, this run needs {sorted(expected)}")
    try:
        recipe.model.load_state_dict(found.tensors["model"])
        if ema:
            ema.module.load_state_dict(found.tensors["ema"])
    except RuntimeError as error:
        raise ValueError(f"{path} is of another model: {error}") from error
    for update in recipe.updates:
        moments = found.tensors.get(update.file, {})
        checkpoint.unpack_optimizer(update.optimizer, moments)
    return found.state


def _tensors(recipe: Recipe, ema: Ema | None) -> dict[str, dict[str, Tensor]]:
    tensors = {"model": recipe.model.state_dict()}
    if ema:
        tensors["ema"] = ema.module.state_dict()
    for update in recipe.updates:
        tensors[update.file] = checkpoint.pack_optimizer(update.optimizer)
    return tensors


def _seed(seed: int, device: torch.device) -> None:
    """Both generators that a step may draw from; `torch.manual_seed` takes 0.5 ms for all of
    them.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


def _device_type(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

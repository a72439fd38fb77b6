"""The training loop. Every system trains through `fit`.

A step is a short list of updates: one for most systems, critic then generator for a GAN.
Randomness and the position in the data are functions of (seed, rank, step), so a checkpoint is
tensors and a step count, and a resumed run repeats an uninterrupted one exactly.

`fit` is a generator: bars, previews and cancellation belong to the caller. Closing it saves.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from triptych import runtime
from triptych.data.order.batches import Batches, to_device, write_skipped
from triptych.runtime import key
from triptych.train import checkpoint
from triptych.train.changed_data import DataWatch, require_same_vocabulary
from triptych.train.checkpoint import Checkpoint
from triptych.train.distributed import SINGLE_PROCESS, World, own_part
from triptych.train.held_weights import Whole, hold_weights, recompute_blocks
from triptych.train.journal import Journal
from triptych.train.optimizer import Ema, rate_factor
from triptych.train.recipe import Batch, Recipe, Update
from triptych.train.settings import Training
from triptych.vision.images import save_picture

if TYPE_CHECKING:
    from triptych.train.shards import Shards

PATIENCE = 5  # steps in a row without a finite update before training is called diverged


class Report(NamedTuple):
    """What one step did."""

    step: int
    terms: dict[str, float]  # this step's loss terms
    row: dict[str, Any] | None  # what went into metrics.jsonl at this step
    saved: Path | None  # the checkpoint, if one was written, or begun by sharded training
    note: str = ""  # what people should know, such as that the data have changed


def fit(
    recipe: Recipe, training: Training, run: Path, world: World = SINGLE_PROCESS
) -> Generator[Report, None, None]:
    """Train in a run folder, from its newest good checkpoint if it has one.

    Of several processes the first draws, evaluates and writes. All must stop after the same step.

    Raises:
        FloatingPointError: five steps in a row gave no finite update; the last checkpoint is good.
        ValueError: the data is unusable, or the checkpoint does not fit the recipe.
        OtherProcessFailed: another process failed and says why.
        RuntimeError: the processes do not hold the same weights.
    """
    device = next(recipe.model.parameters()).device
    precision = runtime.precision(training.precision, device)
    held = hold_weights(recipe, precision, run, world)
    recipe, ema = held.recipe, None
    if training.ema_halflife:
        ema = Ema(recipe.exported, training.ema_halflife, average=held.copy())
    if training.recompute:
        recompute_blocks(recipe)
    for update in recipe.updates:
        for group in update.optimizer.param_groups:
            group["base_lr"] = group["lr"]
    state = world.run_on_all(lambda: _resume(run, held, ema))
    world.require_same(recipe.model.parameters(), state.step)
    records = Records(held, training, run, ema, state)
    data = recipe.batches(
        state.step * training.accumulate * sum(update.batches for update in recipe.updates)
    )
    grouped = _group_batches(data, training.accumulate, device)
    buffers = list(recipe.model.buffers())
    unreadable: dict[str, str] = {}  # pictures, by all processes
    watch = DataWatch(recipe, data, world, state.step, state.data)
    state.data, saved = watch.digest, True
    recipe.model.train()
    try:
        for step in range(state.step + 1, training.steps + 1):
            _seed(key(training.seed, world.rank, step), device)
            rate = rate_factor(training, step - 1)
            terms, finite = take_step(
                recipe.updates, grouped, step, rate, buffers, precision, world
            )
            saved = False
            state.count(step, terms, finite)
            if ema:
                ema.update(step)

            last = step == training.steps
            row: dict[str, Any] | None = None
            if step % training.log_every == 0 or last:
                row = {"step": step, **state.take_means(), "rate": rate, "skipped": state.skipped}
            row = records.write(step, row, last)
            path = None
            if step % training.save_every == 0 or last:
                world.require_same(recipe.model.parameters(), step)
                for theirs in world.gather(_unreadable(data)):
                    unreadable |= theirs
                path = records.save(state, unreadable)
                saved = True
            if last:
                held.wait()
            yield Report(step, terms, row, path, watch.tell(last))
    except GeneratorExit:  # the caller stops: a finished step is never lost
        if not saved:
            records.save(state, unreadable | _unreadable(data))
        held.wait()
        raise
    finally:
        records.close()


def take_step(
    updates: Sequence[Update],
    grouped: Iterator[list[Batch]],
    step: int,
    rate: float,
    buffers: Sequence[Tensor],
    precision: str,
    world: World,
) -> tuple[dict[str, float], bool]:
    """Every update once, each repeated as often as it says.

    `grouped` gives the batches that one update accumulates over, and `rate` is the share of the
    learning rates that this step uses. Returns the loss terms, and whether all updates were finite.
    """
    terms: dict[str, float] = {}
    finite = True
    current: list[Batch] = []
    for update in updates:
        for group in update.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        for repeat in range(update.repeat):
            if update.data == "each" or (update.data == "once" and repeat == 0):
                current = next(grouped)
            kept = [buffer.clone() for buffer in buffers]
            measured = descend(update, current, step, precision, world)
            if measured.pop("finite") == 0.0:  # nor may a running mean learn from it
                finite = False
                for buffer, before in zip(buffers, kept, strict=True):
                    buffer.copy_(before)
            terms |= measured
    return terms, finite


def descend(
    update: Update,
    batches: Sequence[Batch],
    step: int,
    precision: str,
    world: World = SINGLE_PROCESS,
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
        with torch.autocast(moving[0].device.type, torch.bfloat16, precision == "bfloat16"):
            loss = update.objective(batch, step)
        # Not into a critic that only scores; of sharded weights the graph has gathered ones.
        loss.total.backward(inputs=None if world.shards else moving)
        names = list(loss.terms)
        means = [term.detach().float() * loss.count for term in loss.terms.values()]
        row = torch.stack([loss.total.detach().float(), *means])
        sums = row if sums is None else sums + row
        count = count + loss.count
    assert sums is not None
    if world.size > 1:
        numbers = torch.cat([sums, torch.as_tensor(count).to(sums)[None]])
        world.add_up_gradients(moving, numbers)
        sums, count = numbers[:-1], numbers[-1]
    gradients = [p.grad for p in moving if p.grad is not None]
    parts = [own_part(gradient) for gradient in gradients]
    torch._foreach_div_(parts, count)  # the mean over items, not micro-batches or ranks
    norm = world.norm(gradients)
    total, *values, size = torch.cat([sums / count, norm[None]]).tolist()  # the step's only sync
    finite = all(abs(value) < float("inf") for value in (total, size))
    if finite:
        if update.max_norm is not None and size > update.max_norm:
            torch._foreach_mul_(parts, update.max_norm / size)
        update.optimizer.step()
    named = dict(zip(names, values, strict=True))
    prefix = f"{update.name}_" if update.name else ""
    return {
        f"{prefix}loss": total,
        **named,
        f"{prefix}norm": size,
        "finite": float(finite),
    }


@dataclass
class State:
    """What a checkpoint holds beside tensors. The journal's rows are means of the terms of several
    steps, and their sums are part of it, so rows are exact after a resume.
    """

    step: int = 0  # finished
    offset: int = 0  # bytes of the journal
    seconds: float = 0.0
    window: list[Any] = field(default_factory=list)  # finite steps since the last row, their sums
    skipped: int = 0  # steps that were not finite
    failed: int = 0  # of those, the last in a row: a resume does not reset them
    data: str = ""  # digest of the stored data when the last process began

    def count(self, step: int, terms: dict[str, float], finite: bool) -> None:
        """Add a step.

        Raises:
            FloatingPointError: it is the last of too many that were not finite.
        """
        self.step = step
        self.failed = 0 if finite else self.failed + 1
        self.skipped += not finite
        if self.failed >= PATIENCE:
            raise FloatingPointError(
                f"no finite update in {PATIENCE} steps, up to step {step}: training diverged. "
                "What was saved before is intact; lower the learning rate or raise the warm-up"
            )
        if finite:
            count, sums = self.window or [0, {}]
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            self.window = [count + 1, sums]

    def take_means(self) -> dict[str, float]:
        """Means of the terms since the last call."""
        count, sums = self.window or [0, {}]
        self.window = []
        return {name: total / count for name, total in sums.items()}


class Records:
    """What a training writes into its run folder, by the first process alone: journal, samples,
    exports, checkpoints.
    """

    def __init__(
        self,
        held: "Whole | Shards",
        training: Training,
        run: Path,
        ema: Ema | None,
        state: State,
    ):
        self.held, self.training, self.run, self.ema = held, training, run, ema
        self.averaged = ema.module if ema else held.recipe.exported
        self.began = time.monotonic() - state.seconds
        self.device = next(self.averaged.parameters()).device
        self.journal: Journal | None = None
        if held.world.first:
            (run / "samples").mkdir(parents=True, exist_ok=True)
            self.journal = Journal(run / "metrics.jsonl", state.offset)

    def write(self, step: int, row: dict[str, Any] | None, last: bool) -> dict[str, Any] | None:
        """Evaluate and sample where this step is one to do so; returns the journal's row."""
        recipe, training = self.held.recipe, self.training
        evaluates = recipe.evaluate and (last or _due(step, training.evaluate_every))
        samples = recipe.sample and (last or _due(step, training.sample_every))
        module = None
        if evaluates or samples:
            module = self.held.gather(self.averaged, self.device)
        if self.journal is None:
            return row
        if recipe.evaluate and evaluates and module is not None:
            row = (row or {"step": step}) | recipe.evaluate(module.eval())
            recipe.model.train()
        if row:
            self.journal.write(row | {"seconds": round(time.monotonic() - self.began, 3)})
        if recipe.sample and samples and module is not None:
            grid = recipe.sample(module.eval())
            save_picture(self.run / "samples" / f"step-{step:06d}.png", grid, {"step": step})
            recipe.model.train()
        return row

    def save(self, state: State, unreadable: dict[str, str]) -> Path | None:
        """Export the model and write a checkpoint; a run counts as finished by its checkpoint, so
        that is written last.
        """
        recipe = self.held.recipe
        if self.journal:
            state.offset, state.seconds = self.journal.sync(), time.monotonic() - self.began
        content = Checkpoint(state.step, asdict(state), _tensors(recipe, self.ema))
        export = partial(recipe.export, self.run)
        path = self.held.save(content, self.training.keep, self.averaged, export)
        if unreadable and self.journal:
            write_skipped(self.run / "skipped.jsonl", unreadable)
        return path

    def close(self) -> None:
        """Close the journal."""
        if self.journal:
            self.journal.close()


def _resume(run: Path, held: "Whole | Shards", ema: Ema | None) -> State:
    """Load the newest good checkpoint of a run folder, if there is one."""
    path, _ = checkpoint.newest(run)
    if path is None:
        return State()
    recipe = held.recipe
    if recipe.vocabulary:
        require_same_vocabulary(run, recipe.vocabulary)
    expected = _tensors(recipe, ema)
    layout = {f"{file}/{name}": x for file, group in expected.items() for name, x in group.items()}
    for update in recipe.updates:
        groups = update.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        layout |= {f"{update.file}/{i}": parameter for i, parameter in enumerate(parameters)}
    stored = held.load(path, layout)
    optimizers = {update.file for update in recipe.updates}
    if stored.tensors.keys() - optimizers != expected.keys() - optimizers:
        raise ValueError(
            f"{path} holds {sorted(stored.tensors)}, this run needs {sorted(expected)}"
        )
    try:
        recipe.model.load_state_dict(stored.tensors["model"])
        if ema:
            ema.module.load_state_dict(stored.tensors["ema"])
    except RuntimeError as error:
        raise ValueError(f"{path} is of another model: {error}") from error
    for update in recipe.updates:
        checkpoint.unpack_optimizer(update.optimizer, stored.tensors.get(update.file, {}))
    return State(**stored.state)


def _tensors(recipe: Recipe, ema: Ema | None) -> dict[str, dict[str, Tensor]]:
    """Everything that a checkpoint holds, by file."""
    tensors = {"model": recipe.model.state_dict()}
    if ema:
        tensors["ema"] = ema.module.state_dict()
    for update in recipe.updates:
        tensors[update.file] = checkpoint.pack_optimizer(update.optimizer)
    return tensors


def _group_batches(
    data: Iterator[Batch], count: int, device: torch.device
) -> Iterator[list[Batch]]:
    """So many batches at a time, on a device."""
    while True:
        yield [to_device(next(data), device) for _ in range(count)]


def _unreadable(data: Iterator[Batch]) -> dict[str, str]:
    """Pictures that could not be read so far, and why."""
    return data.skipped if isinstance(data, Batches) else {}


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that a step may use; `torch.manual_seed` takes 0.5 ms for all of them."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

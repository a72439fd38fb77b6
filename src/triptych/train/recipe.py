"""The recipe of a training: model, updates, batches, and what the loop calls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from triptych.data.order.batches import Batches, batches
from triptych.data.source import Source
from triptych.nn.loss import Loss
from triptych.train.distributed import World
from triptych.train.settings import Training

Batch = dict[str, Any]  # tensors, and lists of strings
Objective = Callable[[Batch, int], Loss]  # of a batch at a step, for warm-ups


class Update(NamedTuple):
    """One kind of optimizer step: the objective, and the module that it updates."""

    name: str
    """Prefix of its loss terms and name of its checkpoint file; empty if it is the only one."""
    module: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    repeat: int = 1
    """Optimizer steps in one step of the loop: several for the critic of a WGAN."""
    data: Literal["each", "once", "reuse"] = "each"
    """A new batch for each repeat, one new batch for all, or the last one of the update before."""
    max_norm: float | None = 1.0
    """Gradients are clipped to this norm; None turns clipping off."""

    @property
    def file(self) -> str:
        """Name of the optimizer's file in a checkpoint."""
        return f"optimizer-{self.name}" if self.name else "optimizer"

    @property
    def batches(self) -> int:
        """New batches in a step of the loop."""
        return {"each": self.repeat, "once": 1, "reuse": 0}[self.data]


class Progress(NamedTuple):
    """How far long work is."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Recipe:
    """A system ready to be trained.

    Wherever a callback gets a module, it is `exported`, or its averaged copy if weights are
    averaged; so it is of the class of `exported`.
    """

    model: nn.Module
    """Everything that is trained and saved in checkpoints: a GAN's critic too."""
    exported: nn.Module
    """The model, or the part of it that is averaged, sampled from, evaluated, and exported."""
    updates: Sequence[Update]
    """What one step of the loop does, in this order."""
    batches: Callable[[int], Iterator[Batch]]
    """Endless batches, starting at a position; batch k is a function of (seed, rank, k)."""
    export: Callable[[Path, Any], None]
    """Write a module to the run folder: weights, config.json, and files beside them. Called at
    every save; most recipes pass `checkpoint.export` with their card.
    """
    blocks: tuple[type[nn.Module], ...] = ()
    """Classes of the blocks that the model is made of: their weights are gathered one block at a
    time where training is sharded, and their activations computed again where that is asked for.
    Empty where a recipe cannot do either.
    """
    chance: str = ""
    """A line for the log: the loss before anything is learned."""
    prepare: Callable[[], Iterator[Progress]] | None = None
    """Long work before the first step, such as filling a cache. It may be stopped and continued,
    and is done later, where it is needed, if nobody calls this.
    """
    sample: Callable[[Any], np.ndarray] | None = None
    """Draw a labelled grid with a module: uint8 (H, W, 3)."""
    evaluate: Callable[[Any], dict[str, Any]] | None = None
    """Metrics of a module on held-out data, for the journal."""
    warn: Callable[[dict[str, Any]], str] | None = None
    """A warning about a row of the journal; empty if there is none."""
    notes: tuple[str, ...] = ()
    """What to know before the first step; most recipes pass `data_notes`."""
    vocabulary: str = ""
    """What `tokenizer.json` of the run folder has, where the data's texts make it. A resume whose
    texts make another one is refused: what was learned of words would be lost.
    """
    digest: str = ""
    """Of the data, where the batches are not `Batches` of a source, so that a resume can say that
    they have changed.
    """


def batches_for(
    source: Source, training: Training, world: World, *, hard_negative_pool: int = 1
) -> Callable[[int], Batches]:
    """The `batches` of a recipe: this process's share of a source's batches."""

    def start_at(position: int) -> Batches:
        return batches(
            source,
            training.batch_size // world.size,
            seed=training.seed,
            rank=world.rank,
            ranks=world.size,
            start=position,
            workers=training.workers,
            hard_negative_pool=hard_negative_pool,
        )

    return start_at


def data_notes(source: Source, training: Training) -> tuple[str, ...]:
    """What to know about the data of a run: what of it is not used, and a batch that is larger."""
    info, notes = source.info, source.info.notes
    if info.length is not None and training.batch_size > info.length:
        notes += (
            f"a batch of {training.batch_size:,} is larger than the {info.length:,} training "
            f"pictures of {info.name!r}, so it has some of them several times: a --batch-size of "
            f"at most {info.length:,} has each once",
        )
    return notes

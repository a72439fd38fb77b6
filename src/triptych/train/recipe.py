"""All that the loop knows of a system."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from triptych.nn.loss import Loss

Batch = dict[str, Any]  # tensors, and lists of strings
Objective = Callable[[Batch, int], Loss]  # the step is there for warm-ups


class Update(NamedTuple):
    """One kind of optimizer step: which module moves, down which objective."""

    name: str
    """What its terms and its file are called by; empty where it is the only one."""
    module: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    repeat: int = 1
    """Optimizer steps in one step of the loop: three for the lecture's critic."""
    data: Literal["each", "once", "kept"] = "each"
    """A fresh batch for each repeat, one for all repeats, or the one that the update before it
    saw.
    """
    max_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None leaves them alone (a critic's)."""

    @property
    def file(self) -> str:
        return f"optimizer-{self.name}" if self.name else "optimizer"

    @property
    def batches(self) -> int:
        """How many fresh batches a step takes."""
        return {"each": self.repeat, "once": 1, "kept": 0}[self.data]


class Progress(NamedTuple):
    """How far long work is."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Recipe:
    """A system ready to be trained."""

    model: nn.Module
    """Everything that is trained, and so saved: a GAN's critic too."""
    exported: nn.Module
    """What is averaged, sampled from, judged, and exported in the end: the model or a part of
    it.
    """
    updates: Sequence[Update]
    batches: Callable[[int], Iterator[Batch]]
    """Endless batches from a position on; batch k is a function of (seed, rank, k)."""
    card: dict[str, Any] | Callable[[nn.Module], dict[str, Any]]
    """What config.json will say: the model's name and configuration, and what its conditions are
    called. A function of what is exported where training measures some of it.
    """
    chance: str = ""
    """What the loss is before anything is learned, for the reader of the first lines."""
    sample: Callable[[nn.Module], np.ndarray] | None = None
    """A labelled grid, uint8 (H, W, 3), drawn by the (averaged) exported module."""
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None
    """Numbers on held-out data, by the (averaged) exported module."""
    prepare: Callable[[], Iterator[Progress]] | None = None
    """Long work before the first step, stopped and continued at any moment: filling a cache. What
    needs it does it itself where nobody has waited for this.
    """
    finished: Callable[[nn.Module], nn.Module] | None = None
    """What is exported of the (averaged) module, where it is not the module itself: low-rank
    updates merged, weights interpolated.
    """
    beside: Callable[[Path], None] | None = None
    """Writes into the run folder what belongs beside the exported weights: a tokenizer."""
    further: Callable[[Path, nn.Module], None] | None = None
    """Writes further forms of the (averaged) module into the run folder: low-rank updates alone."""
    warn: Callable[[dict[str, Any]], str] | None = None
    """What a person should know of a row of the journal; empty when nothing."""

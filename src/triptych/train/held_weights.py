"""How the weights of a training are held: whole in every process, or shared out among them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as compute_again

from triptych.train import checkpoint
from triptych.train.checkpoint import Checkpoint
from triptych.train.distributed import World
from triptych.train.recipe import Recipe

if TYPE_CHECKING:
    from triptych.train.shards import Shards


@dataclass(frozen=True)
class Whole:
    """Every process holds all weights; the first one writes. `Shards` has the same methods."""

    recipe: Recipe
    run: Path
    world: World

    def copy(self) -> nn.Module:
        """A copy of the exported module, for an average."""
        return copy.deepcopy(self.recipe.exported)

    def gather(self, module: nn.Module, device: torch.device) -> nn.Module | None:
        """A module with all its weights, in the first process alone."""
        return module if self.world.first else None

    def load(self, path: Path, layout: Mapping[str, Tensor]) -> Checkpoint:
        """Read a checkpoint that has been verified, of sharded training or not."""
        if any(path.glob("shard-*.safetensors")):
            from triptych.train import shard_files

            return shard_files.load(path, {})
        return checkpoint.load(path)

    def save(
        self,
        content: Checkpoint,
        keep: int,
        averaged: nn.Module,
        export: Callable[[nn.Module], None],
    ) -> Path | None:
        """Export the averaged module, then write a checkpoint: by that a run counts as finished."""
        if not self.world.first:
            return None
        export(averaged)
        return checkpoint.save(self.run, content.step, content.tensors, content.state, keep)

    def wait(self) -> None:
        """Wait for what is being saved: nothing is."""


def hold_weights(recipe: Recipe, precision: str, run: Path, world: World) -> "Whole | Shards":
    """The weights of a recipe's model, shared out if the processes do that."""
    if not world.shards:
        return Whole(recipe, run, world)
    from triptych.train.shards import share_out  # here: its imports take seconds

    return share_out(recipe, precision, run, world)


def recompute_blocks(recipe: Recipe) -> None:
    """Let blocks keep their inputs alone and compute the rest again in the backward pass
    (arXiv:1604.06174), with the same random numbers.
    """
    for module in recipe.model.modules():
        if isinstance(module, recipe.blocks):
            module.forward = partial(compute_again, module.forward, use_reentrant=False)

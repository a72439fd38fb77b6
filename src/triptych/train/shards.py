"""Sharded training: each process holds a share of weights, gradients and optimizer state.

FSDP2 of PyTorch, which is ZeRO's third stage (arXiv:1910.02054): the weights of a block are
gathered before it computes and let go after it, forwards and backwards, and its gradients are
summed straight into the shares. What no block holds, such as embeddings, is gathered for the whole
step. The loop stays the same: it sees an objective, and parameters that are shares.

Single numbers, such as CLIP's temperature, stay whole in every process.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from triptych.nn.loss import Loss
from triptych.train import checkpoint, shard_files
from triptych.train.checkpoint import Checkpoint
from triptych.train.distributed import World, whole
from triptych.train.recipe import Batch, Objective, Recipe
from triptych.train.shard_files import ShardWriter

BESIDE_FORWARD = ("at",)
"""Methods by which a block is called, other than `forward`."""


class WholeStep(nn.Module):
    """An objective as the forward of a module: FSDP gathers before it what no block holds, and the
    objective may call any part of the model.
    """

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, step: int) -> Loss:
        return self.objective(batch, step)


@dataclass(frozen=True)
class Shards:
    """A recipe whose weights are shared out."""

    recipe: Recipe
    blank: nn.Module
    """A copy of the exported module without weights."""
    writer: ShardWriter
    world: World

    def copy(self) -> nn.Module:
        """The exported module with shares of its own, which is not called: for an average."""
        copied = copy.deepcopy(self.blank)
        shares = self.recipe.exported.state_dict()
        copied.load_state_dict(
            {name: x.detach().clone() for name, x in shares.items()}, assign=True
        )
        return copied

    def gather(self, module: nn.Module, device: torch.device) -> nn.Module | None:
        """A copy of a module with all its weights, on a device; in the first process alone, and all
        must ask.
        """
        weights = {}
        for name, share in module.state_dict().items():
            tensor = whole(share)
            if self.world.first:
                weights[name] = tensor.detach().to(device, copy=tensor is share)
        if not self.world.first:
            return None
        copied = copy.deepcopy(self.blank)
        copied.load_state_dict(weights, assign=True)
        return copied.to(device)

    def load(self, path: Path, layout: Mapping[str, Tensor]) -> Checkpoint:
        """This process's shares of a checkpoint that has been verified."""
        return self.world.run_on_all(lambda: shard_files.load(path, layout))

    def save(
        self,
        content: Checkpoint,
        keep: int,
        averaged: nn.Module,
        export: Callable[[nn.Module], None],
    ) -> Path | None:
        """Begin to write a checkpoint; when it is written, the averaged module is exported and the
        checkpoint gets its name. Returns its path, in the first process alone.
        """
        run, step, state = self.writer.run, content.step, content.state
        complete = self.gather(averaged, torch.device("cpu"))

        def finish(fill: Callable[[Path], None]) -> None:
            assert complete is not None
            export(complete)
            checkpoint.complete(run, step, fill, state, keep)

        self.writer.begin(step, content.tensors, finish)
        return run / f"step-{step:06d}" if self.world.first else None

    def wait(self) -> None:
        """Wait for the checkpoint that was begun."""
        self.writer.wait()


def share_out(recipe: Recipe, precision: str, run: Path, world: World) -> Shards:
    """Share out the weights of a recipe's model, in place, and let its optimizer move the shares.

    In bfloat16 the weights of blocks are gathered in it; shares, sums of gradients and everything
    that no block holds stay in float32.
    """
    model, (update,) = recipe.model, recipe.updates
    blank = copy_without_weights(recipe.exported)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    names = {parameter: name for name, parameter in model.named_parameters()}
    numbers = {parameter for parameter in names if not parameter.ndim}
    shard = partial(fully_shard, mesh=mesh, ignored_params=numbers)
    gathered = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in reversed(list(model.modules())):  # the parts of a module come before it
        if isinstance(module, recipe.blocks):
            shard(module, mp_policy=policy)
            for name in BESIDE_FORWARD:
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)
    # A block's `at` gives a view, which would lose its hook if it were changed in place: none is.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    whole_step = WholeStep(model, update.objective)
    shard(whole_step)
    for module in whole_step.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loop divides by the number of items
            module.set_force_sum_reduction_for_comms(True)
    shares = dict(model.named_parameters())
    for group in update.optimizer.param_groups:
        group["params"] = [shares[names[parameter]] for parameter in group["params"]]
    shared = replace(recipe, updates=[update._replace(objective=whole_step)])
    return Shards(shared, blank, ShardWriter(run, world), world)


def copy_without_weights(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters are on the meta device; its buffers are copied."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo)

"""What a LoRA adds to the weights of a model: put in with a strength, and taken out to the bit.

Dimensions: O outputs, I inputs, R rank, K side of a filter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triptych.nn.lora import LowRank


@dataclass(frozen=True)
class Update:
    """`alpha / rank * up @ down` for one layer (arXiv:2106.09685, section 4.1).

    Of a convolution `down` has the filter and `up` is 1 x 1, or, with `mid`, both are 1 x 1 and
    `mid` has the filter (a Tucker decomposition, arXiv:2309.14859).
    """

    down: Float[Tensor, "R I *K"]
    up: Float[Tensor, "O R *K1"]
    alpha: float
    mid: Float[Tensor, "R R *K"] | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that this is for."""
        filters = self.down if self.mid is None else self.mid
        return (self.up.shape[0], self.down.shape[1], *filters.shape[2:])

    def delta(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "O I *K"]:
        """What a strength of 1 adds."""
        up, down = self.up.to(dtype).flatten(1), self.down.to(dtype)
        if self.mid is None:
            whole = (up @ down.flatten(1)).view(self.shape)
        else:
            inner = torch.einsum("rs...,si->ri...", self.mid.to(dtype), down.flatten(1))
            whole = (up @ inner.flatten(1)).view(self.shape)
        return whole * (self.alpha / self.rank)


def merge(module: nn.Module, *loras: tuple[Mapping[str, Update], float]) -> dict[str, Tensor]:
    """Adds updates to a module's weights, each LoRA with its strength; returns the weights as they
    were, for `restore`.

    Sums are made in at least float32 and rounded once. The old tensors are kept, not copied.

    Raises:
        ValueError: an update of a layer that the module lacks or that has another shape.
    """
    changed: dict[str, Tensor] = {}
    weights = dict(module.named_parameters())
    for updates, strength in loras:
        for name, update in updates.items():
            if name not in weights:
                raise ValueError(f"an update is of {name}, which the model lacks")
            old = weights[name]
            if not fits(update, old.shape):
                raise ValueError(f"the update of {name} is {update.shape}, not {tuple(old.shape)}")
            wide = torch.promote_types(old.dtype, torch.float32)
            delta = update.delta(wide).to(old.device).view(old.shape)
            before = changed[name] if name in changed else old.detach().to(wide)
            changed[name] = before + strength * delta
    originals = {name: weights[name].data for name in changed}
    for name, whole in changed.items():
        weights[name].data = whole.to(originals[name].dtype)
    return originals


def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Takes out what `merge` put in: the weights that it returned come back, to the bit."""
    own = dict(module.named_parameters())
    for name, tensor in weights.items():
        own[name].data = tensor


def fits(update: Update, shape: torch.Size | tuple[int, ...]) -> bool:
    """A 1 x 1 filter is a linear layer."""

    def plain(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return sizes[:2] if set(sizes[2:]) <= {1} else sizes

    return plain(update.shape) == plain(tuple(shape))


def of_module(module: nn.Module) -> dict[str, Update]:
    """The updates that `nn.lora.add` gave a module and training filled, by the weights they are
    for.
    """
    return {
        f"{name}.weight": Update(
            layer.lora_down.detach(), layer.lora_up.detach(), layer.scale * len(layer.lora_down)
        )
        for name, layer in module.named_modules()
        if isinstance(layer, LowRank)
    }

"""Low-rank updates of weights: merge them with a strength, and restore the weights exactly.

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
    """The update `alpha / rank * up @ down` of one layer (arXiv:2106.09685, section 4.1).

    For a convolution `down` has the kernel and `up` is 1 x 1; with `mid`, both are 1 x 1 and `mid`
    has the kernel (a Tucker decomposition, arXiv:2309.14859).
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
        """Shape of the weight."""
        kernel = self.down if self.mid is None else self.mid
        return (self.up.shape[0], self.down.shape[1], *kernel.shape[2:])

    def delta(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "O I *K"]:
        """The change of the weight at strength 1."""
        up, down = self.up.to(dtype).flatten(1), self.down.to(dtype)
        if self.mid is None:
            product = (up @ down.flatten(1)).view(self.shape)
        else:
            inner = torch.einsum("rs...,si->ri...", self.mid.to(dtype), down.flatten(1))
            product = (up @ inner.flatten(1)).view(self.shape)
        return product * (self.alpha / self.rank)


def merge(module: nn.Module, *loras: tuple[Mapping[str, Update], float]) -> dict[str, Tensor]:
    """Add updates to the weights of a module, each LoRA with its strength; returns the old weights
    for `restore`.

    Sums are computed in at least float32 and rounded once. The old tensors are not copied.

    Raises:
        ValueError: an update is for a layer that the module does not have, or of another shape.
    """
    changed: dict[str, Tensor] = {}
    weights = dict(module.named_parameters())
    for updates, strength in loras:
        for name, update in updates.items():
            if name not in weights:
                raise ValueError(f"there is an update of {name}, which the model does not have")
            old = weights[name]
            if not fits(update, old.shape):
                raise ValueError(f"the update of {name} is {update.shape}, not {tuple(old.shape)}")
            wide = torch.promote_types(old.dtype, torch.float32)
            delta = update.delta(wide).to(old.device).view(old.shape)
            before = changed[name] if name in changed else old.detach().to(wide)
            changed[name] = before + strength * delta
    originals = {name: weights[name].data for name in changed}
    for name, weight in changed.items():
        weights[name].data = weight.to(originals[name].dtype)
    return originals


def restore(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Undo `merge` exactly, given the weights that it returned."""
    parameters = dict(module.named_parameters())
    for name, tensor in weights.items():
        parameters[name].data = tensor


def fits(update: Update, shape: torch.Size | tuple[int, ...]) -> bool:
    """Whether an update fits a weight; 1 x 1 convolutions and linear layers are the same."""

    def without_kernel(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return sizes[:2] if set(sizes[2:]) <= {1} else sizes

    return without_kernel(update.shape) == without_kernel(tuple(shape))


def updates_of(module: nn.Module) -> dict[str, Update]:
    """The updates of the trained low-rank layers (`nn.lora`) of a module, by weight."""
    return {
        f"{name}.weight": Update(
            layer.lora_down.detach(), layer.lora_up.detach(), layer.scale * len(layer.lora_down)
        )
        for name, layer in module.named_modules()
        if isinstance(layer, LowRank)
    }

"""Low-rank updates of linear layers: add, train, merge (arXiv:2106.09685).

Dimensions: B batch, I inputs, O outputs, R rank.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """A frozen linear layer plus `scale * up @ down`; `up` is initialised to zero."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.linear.requires_grad_(False)
        self.lora_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        update = F.linear(F.linear(x, self.lora_down), self.lora_up)
        result: Tensor = self.linear(x) + self.scale * update
        return result

    def merge(self) -> nn.Linear:
        """One linear layer with the same output."""
        linear = copy.deepcopy(self.linear)
        with torch.no_grad():
            linear.weight += self.scale * self.lora_up @ self.lora_down
        return linear


def add(
    module: nn.Module, rank: int, *, alpha: float | None = None, names: Sequence[str] = ("",)
) -> int:
    """Adds a low-rank update to every linear layer whose name ends in one of `names` and freezes
    the rest of the module; returns the number of these layers.

    The updates are scaled by alpha / rank, as in the paper; None is alpha = rank.

    Raises:
        ValueError: a rank below 1, or no layer of these names.
    """
    if rank < 1:
        raise ValueError(f"the rank of a low-rank update is at least 1, not {rank}")
    module.requires_grad_(False)
    scale = 1.0 if alpha is None else alpha / rank
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name.endswith(tuple(names)):
                setattr(parent, name, LowRank(child, rank, scale))
                count += 1
    if not count:
        raise ValueError(f"no linear layer of the module is called {' or '.join(names)}")
    return count


def merge(module: nn.Module) -> nn.Module:
    """A copy of the module with every low-rank update merged into its layer."""
    copied = copy.deepcopy(module)
    if isinstance(copied, LowRank):
        return copied.merge()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                setattr(parent, name, child.merge())
    return copied


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the updates alone, by their names in the module, as stored in files."""
    return {name: x for name, x in module.state_dict().items() if ".lora_" in f".{name}"}

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
    """A frozen linear layer plus `scale * up @ down`, of which `up` begins at zero."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.linear.requires_grad_(False)
        self.lora_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        update = F.linear(F.linear(x, self.lora_down), self.lora_up)
        whole: Tensor = self.linear(x) + self.scale * update
        return whole

    def merged(self) -> nn.Linear:
        """One linear layer that gives the same answers."""
        whole = copy.deepcopy(self.linear)
        with torch.no_grad():
            whole.weight += self.scale * self.lora_up @ self.lora_down
        return whole


def add(
    module: nn.Module, rank: int, *, alpha: float | None = None, names: Sequence[str] = ("",)
) -> int:
    """Give every linear layer whose name ends in one of `names` a low-rank update, and freeze the
    rest of the module; returns how many layers got one.

    `alpha` weighs the updates by alpha / rank, as in the paper; None is alpha = rank.

    Raises:
        ValueError: a rank below 1, or no layer of these names.
    """
    if rank < 1:
        raise ValueError(f"the rank of a low-rank update is at least 1, not {rank}")
    module.requires_grad_(False)
    scale = 1.0 if alpha is None else alpha / rank
    found = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name.endswith(tuple(names)):
                setattr(parent, name, LowRank(child, rank, scale))
                found += 1
    if not found:
        raise ValueError(f"no linear layer of the module is called {' or '.join(names)}")
    return found


def merge(module: nn.Module) -> nn.Module:
    """A copy of the module in which every low-rank update is a part of its layer."""
    whole = copy.deepcopy(module)
    if isinstance(whole, LowRank):
        return whole.merged()
    for parent in list(whole.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRank):
                setattr(parent, name, child.merged())
    return whole


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the updates alone, by their names in the module: what a file of them holds."""
    return {name: x for name, x in module.state_dict().items() if ".lora_" in f".{name}"}

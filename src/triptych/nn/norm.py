"""Normalisation.

Dimensions: B batch, C channels, H height, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.Module):
    """Zero mean and unit variance over groups of channels, per picture (arXiv:1803.08494).

    Half-precision input is not converted; the kernel sums in float32. The output has the input's
    dtype, also under autocast.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps).to(x.dtype)


class RmsNorm(nn.Module):
    """Unit mean square over the width, then a scale (arXiv:1910.07467), in at least float32.

    The scale is `offset` plus the weight: 1 for Gemma, which stores it so, 0 for T5.
    """

    def __init__(self, width: int, eps: float = 1e-6, offset: float = 1.0):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = self.weight.to(wide)
        if self.offset:
            scale = self.offset + scale
        if x.dtype == wide:
            return F.rms_norm(x, scale.shape, scale, self.eps)
        # scaled before the cast: the other order, Llama's, costs Gemma visible quality in bfloat16
        return F.rms_norm(x.to(wide), scale.shape, scale, self.eps).to(x.dtype)

    def fold(self) -> None:
        """Add the offset to the weight, which saves a sum at every call."""
        with torch.no_grad():
            self.weight.add_(self.offset)
        self.offset = 0.0

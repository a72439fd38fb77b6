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

"""What U-Nets share: how blocks are told something, and the levels on the way down and up.

Dimensions: B batch, C channels, H height, W width, N numbers, F features.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.convolution import Downsample, Upsample


class Features(nn.Module):
    """What every residual block is told, such as the time, out of the numbers that say it."""

    def __init__(self, numbers: int, width: int):
        super().__init__()
        self.up = nn.Linear(numbers, width)
        self.down = nn.Linear(width, width)

    def forward(self, numbers: Float[Tensor, "B N"]) -> Float[Tensor, "B F"]:
        features: Tensor = self.down(F.silu(self.up(numbers.to(self.up.weight.dtype))))
        return features


class Down(nn.Module):
    """A level on the way down: its blocks, then half the side unless it is the last."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: Downsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Float[Tensor, "B C H W"], *told: Tensor) -> list[Tensor]:
        """What every block and the halving give; the last of it is what the next level takes.

        Each block is called with x and what it is told: features, and the context where there is
        one.
        """
        outputs = []
        for block in self.blocks:
            outputs.append(x := block(x, *told))
        if self.downsample is not None:
            outputs.append(self.downsample(x))
        return outputs


class Up(nn.Module):
    """A level on the way up: twice the side unless it is the last, after its blocks."""

    def __init__(self, blocks: Sequence[nn.Module], upsample: Upsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsample = upsample

    def forward(self, x: Float[Tensor, "B C H W"], skips: list[Tensor], *told: Tensor) -> Tensor:
        """Takes as many `skips` from the end as there are blocks; the next one sets the size, so
        that sides need not be multiples of anything.
        """
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), *told)
        if self.upsample is not None:
            x = self.upsample(x, tuple(skips[-1].shape[2:]))
        return x

"""Parts of U-Nets: the conditioning MLP, and the levels of the encoder and decoder.

Dimensions: B batch, C channels, H height, W width, N numbers, F features.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.convolution import Downsample, Upsample


class Features(nn.Module):
    """MLP from an embedding, such as the timestep's, to the features of every residual block."""

    def __init__(self, numbers: int, width: int):
        super().__init__()
        self.up = nn.Linear(numbers, width)
        self.down = nn.Linear(width, width)

    def forward(self, numbers: Float[Tensor, "B N"]) -> Float[Tensor, "B F"]:
        features: Tensor = self.down(F.silu(self.up(numbers.to(self.up.weight.dtype))))
        return features


class Down(nn.Module):
    """A level of the encoder: its blocks, then downsampling unless it is the last."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: Downsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Float[Tensor, "B C H W"], *conditioning: Tensor) -> list[Tensor]:
        """The outputs of every block and of the downsampling; the last is the next level's input.

        Each block is called with x and the conditioning: features, and a context if there is one.
        """
        outputs = []
        for block in self.blocks:
            outputs.append(x := block(x, *conditioning))
        if self.downsample is not None:
            outputs.append(self.downsample(x))
        return outputs


class Up(nn.Module):
    """A level of the decoder: its blocks, then upsampling unless it is the last."""

    def __init__(self, blocks: Sequence[nn.Module], upsample: Upsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsample = upsample

    def forward(
        self, x: Float[Tensor, "B C H W"], skips: list[Tensor], *conditioning: Tensor
    ) -> Tensor:
        """Pops one of the `skips` for each block. The size of the next one is that of the
        upsampling, so height and width may be odd.
        """
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), *conditioning)
        if self.upsample is not None:
            x = self.upsample(x, tuple(skips[-1].shape[2:]))
        return x


BuildBlock = Callable[[int, int, int], nn.Module]
"""From a level, counted from 0, and the channels of input and output to a block."""


def build_down(widths: Sequence[int], blocks: int, build: BuildBlock) -> nn.ModuleList:
    """The levels of the encoder: `blocks` blocks each, of as many channels as `widths` says."""
    inputs, last = (widths[0], *widths), len(widths) - 1
    return nn.ModuleList(
        Down(
            [build(level, *pair) for pair in pairwise((inputs[level], *[width] * blocks))],
            Downsample(width) if level < last else None,
        )
        for level, width in enumerate(widths)
    )


def build_up(widths: Sequence[int], blocks: int, build: BuildBlock) -> nn.ModuleList:
    """The levels of the decoder, from the coarsest. Each has one block more than in the encoder:
    the last skip connection of a level is from the input of the encoder's level.
    """
    levels, channels = [], widths[-1]
    for level in reversed(range(len(widths))):
        width, inner = widths[level], []
        for skip in (*[width] * blocks, widths[max(0, level - 1)]):
            inner.append(build(level, channels + skip, width))
            channels = width
        levels.append(Up(inner, Upsample(width) if level > 0 else None))
    return nn.ModuleList(levels)

"""Parts of U-Nets: the conditioning MLP, and the levels of the encoder and decoder.

Dimensions: B batch, C channels, H height, W width, N numbers, F features.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.convolution import Downsample, Resample, ResBlock, Upsample


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
    """A level of the encoder: its blocks, then downsampling unless it is the last, by a convolution
    or by a residual block.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: Downsample | ResBlock | None):
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
        if isinstance(self.downsample, ResBlock):
            outputs.append(self.downsample(x, conditioning[0]))
        elif self.downsample is not None:
            outputs.append(self.downsample(x))
        return outputs


class Up(nn.Module):
    """A level of the decoder: its blocks, then upsampling unless it is the last, by a convolution
    or by a residual block.
    """

    def __init__(self, blocks: Sequence[nn.Module], upsample: Upsample | ResBlock | None):
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
        if self.upsample is None:
            return x
        size = tuple(skips[-1].shape[2:])
        if isinstance(self.upsample, ResBlock):
            resized: Tensor = self.upsample(x, conditioning[0], size)
            return resized
        wide: Tensor = self.upsample(x, size)
        return wide


BuildBlock = Callable[[int, int, int], nn.Module]
"""From a level, counted from 0, and the channels of input and output to a block."""
BuildResample = Callable[[int, Resample], ResBlock]
"""From channels and a direction to a residual block that halves or doubles the side."""


def build_down(
    widths: Sequence[int], blocks: int, build: BuildBlock, resample: BuildResample | None = None
) -> nn.ModuleList:
    """The levels of the encoder: `blocks` blocks each, of as many channels as `widths` says.
    Without `resample` convolutions halve the side.
    """
    inputs, last = (widths[0], *widths), len(widths) - 1

    def halve(width: int) -> Downsample | ResBlock:
        return resample(width, "down") if resample else Downsample(width)

    return nn.ModuleList(
        Down(
            [build(level, *pair) for pair in pairwise((inputs[level], *[width] * blocks))],
            halve(width) if level < last else None,
        )
        for level, width in enumerate(widths)
    )


def build_up(
    widths: Sequence[int], blocks: int, build: BuildBlock, resample: BuildResample | None = None
) -> nn.ModuleList:
    """The levels of the decoder, from the coarsest. Each has one block more than in the encoder:
    the last skip connection of a level is from the input of the encoder's level.
    """
    levels, channels = [], widths[-1]
    for level in reversed(range(len(widths))):
        width, inner = widths[level], []
        for skip in (*[width] * blocks, widths[max(0, level - 1)]):
            inner.append(build(level, channels + skip, width))
            channels = width
        double = (resample(width, "up") if resample else Upsample(width)) if level > 0 else None
        levels.append(Up(inner, double))
    return nn.ModuleList(levels)

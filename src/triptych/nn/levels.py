"""Parts of U-Nets: the conditioning MLP, and the levels of the encoder and decoder.

Dimensions: B batch, C channels, H height, W width, N numbers, F features.
"""

from collections.abc import Sequence

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

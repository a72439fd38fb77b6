"""Tiny autoencoders of published latents: TAESD by Ollin Boer Bohan (github.com/madebyollin/taesd).

A few convolutions, distilled from a large autoencoder and a hundred times as fast: for previews
during sampling, and as a latent space to train in.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.nn.norm import GroupNorm
from triptych.system import ModelKind
from triptych.systems.autoencoder.model import (
    Autoencoder,
    AutoencoderConfig,
    decode_in_tiles,
    encode_in_tiles,
)

RANGE = 3.0
"""The decoder clamps its input softly to -3 to 3."""


@dataclass(frozen=True)
@bounded
class TinyAutoencoderConfig:
    """Size of a tiny autoencoder; the defaults are those of Stable Diffusion 1.x, 2.x and XL.

    Stable Diffusion 3 and FLUX.1 have 16 latent channels; FLUX.2 has 32, and `global_norm`.
    """

    channels: int = 3
    latent_channels: int = 4
    width: int = 64
    """Channels of the hidden layers."""
    blocks: tuple[int, ...] = (1, 3, 3, 3)
    """Blocks per level from the finest; each level after the first halves the side."""
    global_norm: bool = False
    """Blocks of the coarsest level also get features of the whole picture, by a group norm."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "channels", "latent_channels", "width")
        if not self.blocks:
            raise ValueError(f"blocks must have one count per level, not {self.blocks}")

    @property
    def factor(self) -> int:
        """Downsampling of height and width."""
        return 1 << (len(self.blocks) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(Z, h, w) of a picture of any size; sides are rounded up to multiples of `factor`."""
        return self.latent_channels, -(-height // self.factor), -(-width // self.factor)


class GlobalNorm(nn.Module):
    """Features that are normalised over the whole picture."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm = GroupNorm(4, 4 * width)
        self.down = nn.Conv2d(4 * width, width, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        result: Tensor = self.down(F.relu(self.norm(self.up(x))))
        return result


class Block(nn.Module):
    """Three convolutions with a skip connection."""

    def __init__(self, width: int, *, global_norm: bool):
        super().__init__()
        self.overall = GlobalNorm(width) if global_norm else None
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if self.overall is not None:
            x = x + self.overall(x)
        h = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(h + x)


def _blocks(config: TinyAutoencoderConfig, level: int) -> nn.ModuleList:
    global_norm = config.global_norm and level == len(config.blocks) - 1
    return nn.ModuleList(
        Block(config.width, global_norm=global_norm) for _ in range(config.blocks[level])
    )


class TinyEncoder(nn.Module):
    """Pictures in [0, 1] to latents."""

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        width, levels = config.width, range(len(config.blocks))
        self.conv_in = nn.Conv2d(config.channels, width, 3, padding=1)
        self.downsample = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False) for _ in levels[1:]
        )
        self.levels = nn.ModuleList(_blocks(config, level) for level in levels)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B Z h w"]:
        x = self.conv_in(image)
        for level, blocks in enumerate(self.levels):
            if level > 0:
                x = self.downsample[level - 1](x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        latents: Tensor = self.conv_out(x)
        return latents


class TinyDecoder(nn.Module):
    """Latents to pictures, roughly in [0, 1]."""

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        width, levels = config.width, range(len(config.blocks))
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.levels = nn.ModuleList(_blocks(config, level) for level in reversed(levels))
        self.upsample = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in levels[1:]
        )
        self.conv_out = nn.Conv2d(width, config.channels, 3, padding=1)

    def forward(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C H W"]:
        x = F.relu(self.conv_in(torch.tanh(latents / RANGE) * RANGE))
        for level, blocks in enumerate(self.levels):
            if level > 0:
                x = self.upsample[level - 1](F.interpolate(x, scale_factor=2.0))
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        image: Tensor = self.conv_out(x)
        return image


class TinyAutoencoder(nn.Module):
    """Pictures in [-1, 1] to the scaled latents of a large autoencoder, and back.

    Either decodes what the other encoded. Latents are deterministic and need no further scale.
    (FLUX.2's are those before 2 x 2 of them become channels and are normalised.) Encoder and
    decoder work on pictures in [0, 1].

    Pictures of any size are padded to the right and below, and cropped by `decode`.
    """

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def encode(
        self, image: Float[Tensor, "B C H W"], *, tile: int | None = None
    ) -> Float[Tensor, "B Z h w"]:
        """Scaled latents; pictures larger than `tile` pixels are encoded in overlapping tiles.

        Raises:
            ValueError: the picture has another number of channels.
        """
        kind = self.encoder.conv_in.weight.dtype
        return encode_in_tiles(
            lambda part: self.encoder(((part + 1) / 2).to(kind)), self.config, image, tile
        )

    def decode(
        self,
        latents: Float[Tensor, "B Z h w"],
        size: tuple[int, int] | None = None,
        *,
        tile: int | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """The picture, roughly in [-1, 1], of this height and width.

        Raises:
            ValueError: the latents do not have the shape for that size.
        """
        kind = self.decoder.conv_in.weight.dtype
        image = decode_in_tiles(
            lambda part: self.decoder(part.to(kind)), self.config, latents, size, tile
        )
        return image * 2 - 1


KINDS = {
    "autoencoder": ModelKind(AutoencoderConfig, Autoencoder),
    "tiny-autoencoder": ModelKind(TinyAutoencoderConfig, TinyAutoencoder),
}

"""The KL autoencoder of latent diffusion (Rombach et al., arXiv:2112.10752).

It encodes a picture as latents, with 1/48 of the numbers, on which diffusion works, and decodes
them. A small KL term keeps the latents near a standard normal; a patch discriminator keeps the
pictures sharp (Esser et al., arXiv:2012.09841).

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides, O output
channels.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.nn.convolution import PixelAttention, ResBlock, Upsample
from triptych.nn.norm import GroupNorm
from triptych.nn.tiles import apply_in_tiles, pad_to_multiple

EPS = 1e-6  # of all norms in this model


@dataclass(frozen=True)
@bounded
class AutoencoderConfig:
    """Size of an autoencoder; the defaults are Stable Diffusion 1.x and 2.x."""

    channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels per level; each level after the first halves the side."""
    blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    groups: int = 32
    """Groups of channels that are normalised together."""
    attention: bool = True
    """Self attention between the blocks of the coarsest level."""
    quant_conv: bool = True
    """A 1 x 1 convolution after the encoder and one before the decoder."""
    scale: float = 0.18215
    """Encoded latents are multiplied by it: 1 / their standard deviation (section D.1)."""
    shift: float = 0.0
    """Subtracted before scaling."""
    channel_means: tuple[float, ...] = ()
    """Subtracted per channel, too; empty for zeros."""
    channel_stds: tuple[float, ...] = ()
    """Each channel is divided by its own; empty for ones."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "channels", "latent_channels", "blocks", "groups")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive numbers, one per level, not {self.widths}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(
                    f"widths must be multiples of groups ({self.groups}), which {width} is not"
                )
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, not {self.scale}")
        for name in ("channel_means", "channel_stds"):
            if len(getattr(self, name)) not in (0, self.latent_channels):
                raise ValueError(
                    f"{name} must be empty or have one number for each of {self.latent_channels} "
                    f"latent channels, not {len(getattr(self, name))}"
                )
        if self.channel_stds and not min(self.channel_stds) > 0:
            raise ValueError(f"channel_stds must be positive, not {self.channel_stds}")

    @property
    def factor(self) -> int:
        """Downsampling of height and width: 8 for four levels."""
        return 1 << (len(self.widths) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(Z, h, w) of a picture of any size; sides are rounded up to multiples of `factor`."""
        return self.latent_channels, -(-height // self.factor), -(-width // self.factor)


@runtime_checkable
class Sizes(Protocol):
    """What the configurations of both autoencoders have in common."""

    @property
    def channels(self) -> int: ...
    @property
    def factor(self) -> int: ...
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]: ...


def encode_in_tiles(
    encoder: Callable[[Tensor], Tensor],
    config: Sizes,
    image: Float[Tensor, "B C H W"],
    tile: int | None,
) -> Float[Tensor, "B O h w"]:
    """Encode a picture, in overlapping tiles if it is larger than `tile` pixels.

    Raises:
        ValueError: the picture has another number of channels.
    """
    if image.shape[1] != config.channels:
        raise ValueError(
            f"this autoencoder needs pictures with {config.channels} channels, not {image.shape[1]}"
        )
    factor = config.factor
    image = pad_to_multiple(image, factor)
    side = -(-(tile or max(image.shape[2:])) // factor)
    overlap = side // 4 * factor
    latents = apply_in_tiles(encoder, image, side=side * factor, overlap=overlap, shrink=factor)
    return latents.to(image.dtype)


def decode_in_tiles(
    decoder: Callable[[Tensor], Tensor],
    config: Sizes,
    latents: Float[Tensor, "B Z h w"],
    size: tuple[int, int] | None,
    tile: int | None,
) -> Float[Tensor, "B C H W"]:
    """Decode latents to a picture of this height and width, in overlapping tiles if it is larger
    than `tile` pixels.

    Raises:
        ValueError: the latents do not have the shape for that size.
    """
    shape, factor = tuple(latents.shape[1:]), config.factor
    height, width = size or (factor * shape[1], factor * shape[2])
    expected = config.latent_shape(height, width)
    if shape != expected:
        raise ValueError(
            f"the latents of a picture of {height} x {width} have shape {expected}, not {shape}"
        )
    side = -(-tile // factor) if tile else max(shape[1:])
    image = apply_in_tiles(decoder, latents, side=side, overlap=side // 4, grow=factor)
    return image[:, :, :height, :width].to(latents.dtype)


class Gaussian(NamedTuple):
    """The posterior of latents before scaling: independent normal distributions."""

    mean: Float[Tensor, "B Z h w"]
    logvar: Float[Tensor, "B Z h w"]  # within [-30, 20]

    def mode(self) -> Float[Tensor, "B Z h w"]:
        return self.mean

    def sample(self, noise: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        """A sample, from standard normal noise."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, " B"]:
        """KL divergence from a standard normal, nats per picture (arXiv:1312.6114, appendix B)."""
        nats = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return nats.flatten(1).sum(1)


class Downsample(nn.Module):
    """Half the height and width; pads with zeros on the right and below only, as LDM does."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        padding = self.conv.padding_mode  # `nn/circular.py` may have changed it
        mode = "constant" if padding == "zeros" else padding
        half: Tensor = self.conv(F.pad(x, (0, 1, 0, 1), mode=mode))
        return half


class Level(nn.Module):
    """Residual blocks, then half or twice the height and width where another level follows."""

    def __init__(
        self,
        widths: tuple[int, ...],
        groups: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(inner, outer, groups=groups, eps=EPS) for inner, outer in pairwise(widths)
        )
        self.downsample = Downsample(widths[-1]) if downsample else None
        self.upsample = Upsample(widths[-1]) if upsample else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H2 W2"]:
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x


class Middle(nn.Module):
    """Two residual blocks with self attention between them, at the coarsest level."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width, groups = config.widths[-1], config.groups
        self.first = ResBlock(width, width, groups=groups, eps=EPS)
        self.attention = (
            PixelAttention(width, heads=1, groups=groups, eps=EPS) if config.attention else None
        )
        self.second = ResBlock(width, width, groups=groups, eps=EPS)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        x = self.first(x)
        if self.attention is not None:
            x = self.attention(x)
        result: Tensor = self.second(x)
        return result


class Encoder(nn.Module):
    """Pictures to means and log variances of latents, concatenated as channels."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        inner = (widths[0], *widths)
        self.down = nn.ModuleList(
            Level((inner[level], *[width] * config.blocks), config.groups, downsample=level < last)
            for level, width in enumerate(widths)
        )
        self.middle = Middle(config)
        self.norm_out = GroupNorm(config.groups, widths[-1], EPS)
        moments = 2 * config.latent_channels
        self.conv_out = nn.Conv2d(widths[-1], moments, 3, padding=1)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.quant_conv else None

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O h w"]:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.middle(x))))
        moments: Tensor = x if self.quant_conv is None else self.quant_conv(x)
        return moments


class Decoder(nn.Module):
    """Unscaled latents to pictures."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths, latent = config.widths[::-1], config.latent_channels
        last = len(widths) - 1
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.quant_conv else None
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.middle = Middle(config)
        inner = (widths[0], *widths)
        self.up = nn.ModuleList(
            Level(
                (inner[level], *[width] * (config.blocks + 1)),
                config.groups,
                upsample=level < last,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = GroupNorm(config.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C H W"]:
        x = z if self.post_quant_conv is None else self.post_quant_conv(z)
        x = self.middle(self.conv_in(x))
        for level in self.up:
            x = level(x)
        image: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return image


class Autoencoder(nn.Module):
    """Pictures in [-1, 1] to scaled latents and back.

    Pictures of any size are padded to the right and below with their last column and row, up to
    multiples of `config.factor`; `decode` crops to `size`.

    `tile` is a side in pixels: larger pictures are processed in overlapping tiles of that size, in
    the memory of one tile. This changes the result slightly: norms and attention see only a tile.

    In half precision, pictures with infinities or NaNs are computed again in float32, with a
    warning: the published SDXL autoencoder overflows float16.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def posterior(self, image: Float[Tensor, "B C H W"], tile: int | None = None) -> Gaussian:
        """The posterior of the latents, before scaling.

        Raises:
            ValueError: the picture has another number of channels, or the tile is too small.
        """
        self._check_tile(tile)
        mean, logvar = encode_in_tiles(
            lambda part: run_without_overflow(self.encoder, part), self.config, image, tile
        ).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(-30, 20))

    def encode(
        self,
        image: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B Z h w"] | None = None,
        *,
        tile: int | None = None,
    ) -> Float[Tensor, "B Z h w"]:
        """Scaled latents: the mode of the posterior, or with standard normal noise a sample."""
        posterior = self.posterior(image, tile)
        return self.scale(posterior.mode() if noise is None else posterior.sample(noise))

    def decode(
        self,
        latents: Float[Tensor, "B Z h w"],
        size: tuple[int, int] | None = None,
        *,
        tile: int | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """The picture, roughly in [-1, 1], of this height and width.

        Raises:
            ValueError: the latents do not have the shape for that size, or are not finite.
        """
        self._check_tile(tile)

        def decode(part: Tensor) -> Tensor:
            return run_without_overflow(self.decoder, self.unscale(part))

        return decode_in_tiles(decode, self.config, latents, size, tile)

    def reconstruct(
        self, image: Float[Tensor, "B C H W"], noise: Float[Tensor, "B Z h w"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Encode and decode, at the size of the picture."""
        height, width = image.shape[2:]
        return self.decode(self.encode(image, noise), (height, width))

    def scale(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        """Latents for diffusion, of about unit variance."""
        means, stds = self._channel_statistics(z)
        return (z - self.config.shift - means) / stds * self.config.scale

    def scaled_deviation(self, posterior: Gaussian) -> Float[Tensor, "B Z h w"]:
        """Standard deviation of the scaled latents around `scale(posterior.mean)`."""
        stds = self._channel_statistics(posterior.mean)[1]
        return (0.5 * posterior.logvar).exp() / stds * self.config.scale

    def unscale(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        """Latents for the decoder: the inverse of `scale`."""
        means, stds = self._channel_statistics(latents)
        return latents / self.config.scale * stds + means + self.config.shift

    def _channel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        count = self.config.latent_channels
        means = self.config.channel_means or (0.0,) * count
        stds = self.config.channel_stds or (1.0,) * count
        return like.new_tensor(means)[:, None, None], like.new_tensor(stds)[:, None, None]

    def _check_tile(self, tile: int | None) -> None:
        step = self.config.factor
        if tile is not None and (tile < 4 * step or tile % step):
            raise ValueError(f"tile must be a multiple of {step}, at least {4 * step}, not {tile}")


def run_without_overflow(
    network: nn.Module, x: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B O H2 W2"]:
    """Run the network in the dtype of its weights; repeat pictures that overflow in float32.

    Other pictures of the batch keep their result, so that none depends on the batch.

    Raises:
        ValueError: the input is not finite.
    """
    kind = next(network.parameters()).dtype
    result: Tensor = network(x.to(kind))
    if torch.finfo(kind).bits >= 32:
        return result
    bad = ~result.isfinite().flatten(1).all(1)
    if not bool(bad.any()):
        return result
    if not bool(x.isfinite().all()):
        raise ValueError(
            "the input of the autoencoder is not finite: the network before it overflowed. Run "
            "that in bfloat16 or float32"
        )
    warnings.warn(
        f"{int(bad.sum())} of {len(bad)} pictures overflowed {kind} in the autoencoder and are "
        "computed again in float32; bfloat16 would not overflow",
        RuntimeWarning,
        stacklevel=2,
    )
    wide = {name: weight.float() for name, weight in network.named_parameters()}
    result = result.float()
    result[bad] = functional_call(network, wide, (x[bad].float(),))
    return result

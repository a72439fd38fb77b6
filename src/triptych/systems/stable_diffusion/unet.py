"""The U-Net of latent diffusion (Rombach et al. arXiv:2112.10752; SDXL: arXiv:2307.01952).

Noisy latents, a time and a text in, a prediction for every latent pixel out. As the U-Net on
pixels, with transformers behind the residual blocks that read the text; Stable Diffusion 1.x, 2.x
and XL, their inpainting forms and the upscaler are values of its configuration.

Dimensions: B pictures, C channels, O output channels, H height, W width, S tokens of the context, D
width of the context, V pooled vector, N sizes, E features, R channels with a skip beside them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.convolution import Downsample, ResBlock, Upsample
from triptych.nn.levels import Down, Features, Up
from triptych.nn.norm import GroupNorm
from triptych.nn.position import timestep_embedding
from triptych.nn.spatial_transformer import SpatialTransformer


@dataclass(frozen=True)
class LatentUNetConfig:
    """Size and kind of a latent U-Net; the defaults are Stable Diffusion 1.x."""

    in_channels: int = 4
    """4 of the latents; inpainting has 9 (mask and masked picture), the upscaler 7 (picture)."""
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels per level; each level after the first halves the side."""
    blocks: int = 2
    """Residual blocks per level on the way down; on the way up there is one more."""
    transformers: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks behind every residual block of a level; 0 for none."""
    middle: int = 1
    """Transformer blocks between down and up."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads per level; the middle has those of the last."""
    context: int = 768
    """Numbers per token of the context."""
    only_context: tuple[int, ...] = ()
    """Levels whose pixels look at the context alone, never at each other; the first is 0."""
    added: int = 0
    """Numbers of the pooled vector and of the waves of all sizes together; 0 where the network is
    told neither. SDXL: 1280 + 6 x 256; its refiner: 1280 + 5 x 256.
    """
    size_waves: int = 256
    """Numbers that one size becomes."""
    labels: int = 0
    """Labels that are told apart, such as noise levels of the upscaler's picture; 0 for none."""
    groups: int = 32
    """Groups of channels that are normalised together."""
    conditioning: Literal["add", "scale_shift"] = "add"
    """Time, vector and sizes are added to the channels, as in all published forms, or scale and
    shift the normalised ones.
    """
    projections: Literal["convolution", "linear"] = "convolution"
    """What a published file holds on the way into and out of transformers (SD 1.x the first, later
    ones the second): the same numbers in another shape, so only conversion looks at it.
    """

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "blocks", "middle", "context", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive numbers, at least one, not {self.widths}")
        for name in ("transformers", "heads"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(
                    f"{name} must have a number for each of the {len(self.widths)} widths, not "
                    f"{getattr(self, name)}"
                )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if heads < 1 or width % heads:
                raise ValueError(f"a width of {width} does not divide into {heads} heads")
            if width % self.groups:
                raise ValueError(f"a width of {width} does not divide into {self.groups} groups")
        for level in self.only_context:
            if not 0 <= level < len(self.widths):
                raise ValueError(
                    f"only_context must name levels from 0 to {len(self.widths) - 1}, not {level}"
                )
        if min(self.transformers) < 0 or self.added < 0 or self.labels < 0:
            raise ValueError("transformers, added and labels must be at least 0")
        if self.size_waves < 2 or self.size_waves % 2:
            raise ValueError(f"size_waves must be even and at least 2, not {self.size_waves}")

    @property
    def time_width(self) -> int:
        """Numbers in the features that every residual block is told."""
        return 4 * self.widths[0]

    def sizes(self, vector: int) -> int:
        """How many sizes the network is told beside a pooled vector of so many numbers.

        Raises:
            ValueError: no number of sizes fits: the vector is of another text encoder.
        """
        sizes, rest = divmod(self.added - vector, self.size_waves)
        if sizes < 0 or rest:
            raise ValueError(
                f"a vector of {vector} numbers and sizes of {self.size_waves} each do not make "
                f"the {self.added} that this U-Net is told: it needs another text encoder"
            )
        return sizes


def residual(config: LatentUNetConfig, channels: int, out: int) -> ResBlock:
    """A residual block as every level has them."""
    return ResBlock(
        channels,
        out,
        features=config.time_width,
        conditioning=config.conditioning,
        groups=config.groups,
    )


class Block(nn.Module):
    """A residual block and, where the level has it, a transformer."""

    def __init__(
        self, config: LatentUNetConfig, channels: int, out: int, *, level: int, transformers: int
    ):
        super().__init__()
        self.residual = residual(config, channels, out)
        self.transformer = None
        if transformers:
            self.transformer = SpatialTransformer(
                out,
                config.heads[level],
                transformers,
                config.context,
                groups=config.groups,
                only_context=level in config.only_context,
            )

    def forward(
        self,
        x: Float[Tensor, "B _ H W"],
        features: Float[Tensor, "B E"],
        context: Float[Tensor, "B S D"],
    ) -> Float[Tensor, "B _ H W"]:
        x = self.residual(x, features)
        return x if self.transformer is None else self.transformer(x, context)


class Middle(nn.Module):
    """Between down and up: two residual blocks with a transformer between them."""

    def __init__(self, config: LatentUNetConfig):
        super().__init__()
        width = config.widths[-1]
        self.first = residual(config, width, width)
        self.transformer = SpatialTransformer(
            width, config.heads[-1], config.middle, config.context, groups=config.groups
        )
        self.second = residual(config, width, width)

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        features: Float[Tensor, "B E"],
        context: Float[Tensor, "B S D"],
    ) -> Float[Tensor, "B C H W"]:
        x = self.transformer(self.first(x, features), context)
        result: Tensor = self.second(x, features)
        return result


class LatentUNet(nn.Module):
    """Noisy latents of any size, and what they are of, to a prediction; zeros at first."""

    def __init__(self, config: LatentUNetConfig):
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.time = Features(width, config.time_width)
        self.added = Features(config.added, config.time_width) if config.added else None
        self.label = nn.Embedding(config.labels, config.time_width) if config.labels else None
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        skips = [width]  # channels of what the way down hands over
        last = len(config.widths) - 1
        down, up = [], []
        for level, (out, count) in enumerate(zip(config.widths, config.transformers, strict=True)):
            blocks = []
            for _ in range(config.blocks):
                blocks.append(Block(config, width, out, level=level, transformers=count))
                width = out
                skips.append(width)
            if level < last:
                skips.append(width)
            down.append(Down(blocks, Downsample(width) if level < last else None))
        self.down = nn.ModuleList(down)
        self.middle = Middle(config)
        for level in range(last, -1, -1):
            out, count = config.widths[level], config.transformers[level]
            blocks = []
            for _ in range(config.blocks + 1):
                both = width + skips.pop()
                blocks.append(Block(config, both, out, level=level, transformers=count))
                width = out
            up.append(Up(blocks, Upsample(width) if level > 0 else None))
        self.up = nn.ModuleList(up)
        self.norm_out = GroupNorm(config.groups, width)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        time: Num[Tensor, " B"],
        context: Float[Tensor, "B S D"],
        *,
        vector: Float[Tensor, "B V"] | None = None,
        sizes: Num[Tensor, "B N"] | None = None,
        label: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B O H W"]:
        """Latents as the schedule scales them, further channels behind them; times from 0 to 999.

        `context` are the hidden states of the text encoders, and of SDXL also `vector`, the pooled
        embedding of the text, and `sizes`: original height and width, top and left of the crop,
        target height and width in pixels; of its refiner the last two are an aesthetic score
        (arXiv:2307.01952, section 2.2). `label` is the noise level of the upscaler's picture.

        Raises:
            ValueError: a condition that this U-Net is not told, or one that it lacks.
        """
        if x.shape[1] != self.config.in_channels or context.shape[2] != self.config.context:
            raise ValueError(
                f"{x.shape[1]} channels and a context of {context.shape[2]} numbers a token were "
                f"given to a U-Net of {self.config.in_channels} and {self.config.context}"
            )
        features = F.silu(self._features(time, vector, sizes, label))  # (B, E)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            skips += level(h, features, context)
            h = skips[-1]
        h = self.middle(h, features, context)
        for level in self.up:
            h = level(h, skips, features, context)
        output: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return output.to(x.dtype)  # autocast ends here

    def _features(
        self, time: Tensor, vector: Tensor | None, sizes: Tensor | None, label: Tensor | None
    ) -> Tensor:
        """The sum of what the network is told about the whole picture."""
        features: Tensor = self.time(timestep_embedding(time, self.config.widths[0]))
        if (label is None) != (self.label is None):
            raise ValueError(f"label: {_told(label)} a U-Net of {self.config.labels} labels")
        if self.label is not None:
            features = features + self.label(label)
        parts = [] if vector is None else [vector]
        if sizes is not None:
            waves = timestep_embedding(sizes.flatten(), self.config.size_waves)
            parts.append(waves.view(len(sizes), -1))  # (B, N x size_waves)
        given = sum(part.shape[1] for part in parts)
        if given != self.config.added:
            raise ValueError(
                f"vector and sizes make {given} numbers, and this U-Net is told "
                f"{self.config.added}: a vector, and sizes of {self.config.size_waves} each"
            )
        if self.added is not None:
            features = features + self.added(torch.cat([p.to(features.dtype) for p in parts], 1))
        return features


def _told(condition: Tensor | None) -> str:
    return "none was given to" if condition is None else "one was given to"

"""The U-Net of latent diffusion (Rombach et al. arXiv:2112.10752; SDXL: arXiv:2307.01952).

Predicts from noisy latents, a timestep and the states of a text. Like the U-Net on pixels, but the
residual blocks are followed by transformers that attend to the text. Stable Diffusion 1.x, 2.x, XL,
their inpainting models and the x4 upscaler differ only in the configuration.

Dimensions: B pictures, C channels, O output channels, H height, W width, S tokens of the context, D
width of the context, V pooled vector, N sizes, E features, R channels with a skip beside them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.nn.convolution import ResBlock
from triptych.nn.levels import Features, build_down, build_up
from triptych.nn.norm import GroupNorm
from triptych.nn.position import timestep_embedding
from triptych.nn.spatial_transformer import SpatialTransformer


@dataclass(frozen=True)
@bounded
class LatentUNetConfig:
    """Architecture of the U-Net; the defaults are Stable Diffusion 1.x."""

    in_channels: int = 4
    """4 for latents; 9 for inpainting (with mask and masked picture), 7 for the upscaler."""
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels per level; each level after the first halves the side."""
    blocks: int = 2
    """Residual blocks per level on the way down; on the way up there is one more."""
    transformers: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks after every residual block, per level; 0 for none."""
    middle: int = 1
    """Transformer blocks between down and up."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads per level; the middle has as many as the last level."""
    context: int = 768
    """Width of the context."""
    only_context: tuple[int, ...] = ()
    """Levels, counted from 0, that have cross attention but no self attention."""
    added: int = 0
    """Width of the pooled vector and the embedded sizes together; 0 for neither. SDXL: 1280 + 6 x
    256; its refiner: 1280 + 5 x 256.
    """
    size_waves: int = 256
    """Width of the sinusoidal embedding of one size."""
    labels: int = 0
    """Number of class labels, such as noise levels of the upscaler; 0 for none."""
    groups: int = 32
    """Groups of channels that are normalised together."""
    conditioning: Literal["add", "scale_shift"] = "add"
    """How the time embedding acts in a residual block; all published models "add" it."""
    projections: Literal["convolution", "linear"] = "convolution"
    """How files store proj_in and proj_out of transformers: 1.x as 1 x 1 convolutions, later models
    as linear layers. Used only in conversion.
    """

    def __post_init__(self) -> None:
        require_at_least(
            self, 1, "in_channels", "out_channels", "blocks", "middle", "context", "groups"
        )
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive numbers, one per level, not {self.widths}")
        for name in ("transformers", "heads"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(
                    f"{name} must have one number for each of {len(self.widths)} levels, not "
                    f"{getattr(self, name)}"
                )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if heads < 1 or width % heads:
                raise ValueError(f"a width of {width} is not divisible by {heads} heads")
            if width % self.groups:
                raise ValueError(f"a width of {width} is not divisible by {self.groups} groups")
        for level in self.only_context:
            if not 0 <= level < len(self.widths):
                raise ValueError(
                    f"only_context must have levels from 0 to {len(self.widths) - 1}, not {level}"
                )
        if self.size_waves < 2 or self.size_waves % 2:
            raise ValueError(f"size_waves must be even and at least 2, not {self.size_waves}")

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.widths[0]

    def sizes(self, vector: int) -> int:
        """Numbers of the size conditioning, given the width of the pooled vector.

        Raises:
            ValueError: the vector does not fit `added`.
        """
        sizes, rest = divmod(self.added - vector, self.size_waves)
        if sizes < 0 or rest:
            raise ValueError(
                f"a pooled vector of width {vector} and sizes of width {self.size_waves} do not "
                f"add up to the {self.added} of this U-Net: it needs another text encoder"
            )
        return sizes


def residual(config: LatentUNetConfig, channels: int, out: int) -> ResBlock:
    """A residual block with the settings of the configuration."""
    return ResBlock(
        channels,
        out,
        features=config.time_width,
        conditioning=config.conditioning,
        groups=config.groups,
    )


class Block(nn.Module):
    """A residual block and, where the level has it, a transformer."""

    def __init__(self, config: LatentUNetConfig, level: int, channels: int, out: int):
        super().__init__()
        self.residual = residual(config, channels, out)
        self.transformer = None
        if config.transformers[level]:
            self.transformer = SpatialTransformer(
                out,
                config.heads[level],
                config.transformers[level],
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
    """Two residual blocks with a transformer between them, at the coarsest level."""

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
    """The U-Net, for latents of any size; predicts zeros before training."""

    def __init__(self, config: LatentUNetConfig):
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.time = Features(width, config.time_width)
        self.added = Features(config.added, config.time_width) if config.added else None
        self.label = nn.Embedding(config.labels, config.time_width) if config.labels else None
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.down = build_down(config.widths, config.blocks, partial(Block, config))
        self.middle = Middle(config)
        self.up = build_up(config.widths, config.blocks, partial(Block, config))
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
        """Predict from noisy latents, with further channels concatenated, and timesteps 0 to 999.

        `context` are states of the text towers. SDXL also has `vector`, the pooled embedding of
        the text, and `sizes`: original height and width, top and left of the crop, target height
        and width in pixels; its refiner has an aesthetic score in place of the last two
        (arXiv:2307.01952, section 2.2). `label` is the noise level of the upscaler's input.

        Raises:
            ValueError: an input is missing, or one is not in the configuration.
        """
        if x.shape[1] != self.config.in_channels or context.shape[2] != self.config.context:
            raise ValueError(
                f"the U-Net needs {self.config.in_channels} channels and a context of width "
                f"{self.config.context}, not {x.shape[1]} and {context.shape[2]}"
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
        """The sum of the embeddings of time, label, and vector with sizes."""
        features: Tensor = self.time(timestep_embedding(time, self.config.widths[0]))
        if (label is None) != (self.label is None):
            state = "missing" if label is None else "not expected"
            raise ValueError(f"label is {state} in a U-Net with {self.config.labels} labels")
        if self.label is not None:
            features = features + self.label(label)
        parts = [] if vector is None else [vector]
        if sizes is not None:
            waves = timestep_embedding(sizes.flatten(), self.config.size_waves)
            parts.append(waves.view(len(sizes), -1))  # (B, N x size_waves)
        width = sum(part.shape[1] for part in parts)
        if width != self.config.added:
            raise ValueError(
                f"vector and embedded sizes have width {width}, but this U-Net needs "
                f"{self.config.added}; a size has width {self.config.size_waves}"
            )
        if self.added is not None:
            features = features + self.added(torch.cat([p.to(features.dtype) for p in parts], 1))
        return features

"""The U-Net of diffusion models (Ho et al. arXiv:2006.11239; Dhariwal & Nichol arXiv:2105.05233).

Noisy picture and time in, a prediction for every pixel out. Levels of falling resolution, each with
residual blocks and self-attention; skip connections lead from every block on the way down to one on
the way up.

Dimensions: B pictures, C channels, O output channels, H height, W width, V condition
numbers, E features of the time, S tokens of the context, D their width.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least, require_widths
from triptych.nn.convolution import PixelAttention, Resample, ResBlock
from triptych.nn.levels import BuildResample, Features, build_down, build_up
from triptych.nn.norm import GroupNorm
from triptych.nn.position import timestep_embedding
from triptych.nn.tiles import pad_to_multiple


@dataclass(frozen=True)
@bounded
class UNetConfig:
    """Configuration of a U-Net."""

    in_channels: int
    out_channels: int
    widths: tuple[int, ...] = (64, 128, 128)
    """Channels per level; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks per level on the way down; on the way up there is one more."""
    attention: tuple[int, ...] = (1,)
    """Levels with self-attention, from 0."""
    head_width: int = 32
    """Channels per attention head."""
    time_width: int = 256
    """Width of the time embedding."""
    vector: int = 0
    """Numbers of a condition whose projection is added to the time embedding; 0 for none."""
    conditioning: Literal["add", "scale_shift"] = "add"
    """The time embedding is added to the channels, or scales and shifts the normalised ones."""
    context: int = 0
    """Width of the tokens of a context, such as a text, that attention reads too; 0 for none."""
    resampling: Literal["convolution", "residual"] = "convolution"
    """What halves and doubles the side between levels: a convolution, or a residual block."""
    middle_attention: bool = True
    """Self-attention between the way down and the way up."""
    patch: int = 1
    """Side of the squares of pixels that become channels at the input: 1, 2 or 4."""
    groups: int = 32
    """Groups of the group normalisation."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(
            self, 1, "in_channels", "out_channels", "blocks", "head_width", "time_width", "groups"
        )
        require_widths(self, "widths")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(
                    f"widths must be multiples of groups, {self.groups}, for group normalisation: "
                    f"{width} is not"
                )
        levels = len(self.widths)
        for level in self.attention:
            if not 0 <= level < levels:
                raise ValueError(
                    f"attention must name levels from 0 to {levels - 1}, one per width, not {level}"
                )
        middle = {levels - 1} if self.middle_attention else set()
        for level in {*self.attention, *middle}:
            if self.widths[level] % self.head_width:
                raise ValueError(
                    f"widths with attention, and the last, must be multiples of head_width, "
                    f"{self.head_width}: {self.widths[level]} is not"
                )
        if self.patch not in (1, 2, 4):
            raise ValueError(f"patch must be 1, 2 or 4, not {self.patch}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")


def residual(
    config: UNetConfig, channels: int, out: int, resample: Resample | None = None
) -> ResBlock:
    """A residual block with the settings of the configuration."""
    return ResBlock(
        channels,
        out,
        features=config.time_width,
        conditioning=config.conditioning,
        groups=config.groups,
        dropout=config.dropout,
        resample=resample,
    )


class Block(nn.Module):
    """A residual block and, optionally, self-attention, which reads the context too."""

    def __init__(self, config: UNetConfig, channels: int, out: int, *, attention: bool):
        super().__init__()
        self.residual = residual(config, channels, out)
        self.attention = None
        if attention:
            heads = out // config.head_width
            self.attention = PixelAttention(out, heads, config.groups, context=config.context)

    def forward(
        self, x: Float[Tensor, "B _ H W"], features: Float[Tensor, "B E"], *context: Tensor
    ) -> Float[Tensor, "B _ H W"]:
        """`context` is none, tokens (B, S, D), or tokens and their mask (B, S)."""
        x = self.residual(x, features)
        return x if self.attention is None else self.attention(x, *context)


class UNet(nn.Module):
    """A noisy picture of any size and its time to a prediction per pixel; initialised to 0."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        area = config.patch**2
        width = config.widths[0]
        self.time = Features(width, config.time_width)
        self.vector_proj = nn.Linear(config.vector, config.time_width) if config.vector else None
        self.conv_in = nn.Conv2d(config.in_channels * area, width, 3, padding=1)

        def block(level: int, channels: int, out: int) -> Block:
            return Block(config, channels, out, attention=level in config.attention)

        resample: BuildResample | None = None
        if config.resampling == "residual":

            def resample(width: int, way: Resample) -> ResBlock:
                return residual(config, width, width, way)

        self.down = build_down(config.widths, config.blocks, block, resample)
        last = config.widths[-1]
        self.middle = nn.ModuleList(
            Block(config, last, last, attention=attention)
            for attention in (config.middle_attention, False)
        )
        self.up = build_up(config.widths, config.blocks, block, resample)
        self.norm_out = GroupNorm(config.groups, width)
        self.conv_out = nn.Conv2d(width, config.out_channels * area, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        time: Num[Tensor, " B"],
        vector: Float[Tensor, "B V"] | None = None,
        *,
        added: Float[Tensor, "B E"] | None = None,
        context: Float[Tensor, "B S D"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B O H W"]:
        """`time` is in the units of training, such as steps 0 to 999; `vector` is the condition.
        `added` is added to the embedding of the time, `context` are tokens that attention reads,
        where `mask` is True.

        Raises:
            ValueError: `vector` or `context` does not fit the configuration: there must be one
                unless its width there is 0.
        """
        if (vector is None) != (self.vector_proj is None):
            state = "no vector" if vector is None else "a vector"
            raise ValueError(f"{state} was given to a U-Net with vector {self.config.vector}")
        if (0 if context is None else context.shape[2]) != self.config.context:
            state = "no context" if context is None else f"a context of {context.shape[2]}"
            raise ValueError(f"{state} was given to a U-Net with context {self.config.context}")
        features = self.time(timestep_embedding(time, self.config.widths[0]))
        if self.vector_proj is not None:
            features = features + self.vector_proj(vector)
        if added is not None:
            features = features + added
        tokens = [each for each in (context, mask) if each is not None]
        features = F.silu(features)  # (B, E)
        height, width = x.shape[2:]
        patch = self.config.patch
        h = self.conv_in(F.pixel_unshuffle(pad_to_multiple(x, patch), patch))
        skips = [h]
        for level in self.down:
            skips += level(h, features, *tokens)
            h = skips[-1]
        for block in self.middle:
            h = block(h, features, *tokens)
        for level in self.up:
            h = level(h, skips, features, *tokens)
        h = self.conv_out(F.silu(self.norm_out(h)))
        h = F.pixel_shuffle(h, patch)[:, :, :height, :width]
        return h.to(x.dtype)  # autocast ends here

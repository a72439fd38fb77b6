"""Blocks of U-Nets and autoencoders: residual blocks, downsampling, upsampling.

Dimensions: B batch, C channels, O output channels, F features, H height, W width, S tokens of a
context, E their width.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.attention import Attention
from triptych.nn.norm import GroupNorm

Resample = Literal["down", "up"]


class ResBlock(nn.Module):
    """Two convolutions with a residual connection, and features such as the time between them.

    The features are added to the channels ("add"), or scale and shift the normalised channels
    ("scale_shift", the adaptive group norm of arXiv:2105.05233). The second convolution is
    initialised to zero, so that a new block is its shortcut. A block that resamples halves or
    doubles the side before its convolutions, and of its shortcut (the same paper, section 3).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        *,
        features: int = 0,
        conditioning: Literal["add", "scale_shift"] = "add",
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        resample: Resample | None = None,
    ):
        super().__init__()
        self.resample = resample
        self.norm1 = GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.scales = conditioning == "scale_shift"
        shifts = 2 * out if self.scales else out
        self.feature_proj = nn.Linear(features, shifts) if features else None
        self.norm2 = GroupNorm(groups, out, eps)
        self.dropout = dropout
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(
        self,
        x: Float[Tensor, "B C _ _"],
        features: Float[Tensor, "B F"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "B O H W"]:
        """`features` come after an activation, which is the same for every block. `size` is that of
        the output of a block that doubles the side; an odd one is possible.
        """
        shift = None
        if self.feature_proj is not None:
            shift = self.feature_proj(features)[:, :, None, None]  # (B, O or 2 O, 1, 1)
        h: Tensor = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = (_resample(each, self.resample, size) for each in (h, x))
        h = self.conv1(h)  # (B, O, H, W)
        if shift is not None and not self.scales:
            h += shift
        h = self.norm2(h)
        if shift is not None and self.scales:
            scale, shift = shift.chunk(2, dim=1)
            if torch.jit.is_tracing():  # type: ignore[attr-defined]
                h = h + h * scale + shift  # OpenVINO 2026.4 crashes while it compiles 1 + scale
            else:
                h = torch.addcmul(shift, h, 1 + scale)
        h = self.conv2(F.dropout(F.silu(h), self.dropout, self.training))
        h += x if self.shortcut is None else self.shortcut(x)
        return h


def _resample(x: Tensor, kind: Resample, size: tuple[int, int] | None) -> Tensor:
    """Half the side, rounded up, by the mean of 2 x 2 pixels; or twice the side by repeating."""
    if kind == "down":
        return F.avg_pool2d(x, 2, ceil_mode=True)
    return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]))


class PixelAttention(nn.Module):
    """Self-attention of pixels with a residual connection; initialised to the identity.

    With a `context` pixels attend to its tokens too, in the same softmax (arXiv:2112.10741).
    """

    def __init__(
        self, channels: int, heads: int, groups: int, eps: float = 1e-5, *, context: int = 0
    ):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps)
        self.attention = Attention(channels, heads, added_dim=context or None)
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.zeros_(self.attention.out_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        context: Float[Tensor, "B S E"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """`mask` is True for the tokens of the context that may be attended to."""
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, H W, C)
        if mask is not None:
            mask = F.pad(mask, (0, tokens.shape[1]), value=True)[:, None, None]
        change: Tensor = self.attention(tokens, mask=mask, added=context)
        return x + change.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        half: Tensor = self.conv(x)
        return half


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size`, at most twice the side, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.pairs: Tensor | None = None  # `over_pairs` of the weight, while a sampler keeps it

    def forward(
        self, x: Float[Tensor, "B C H W"], size: tuple[int, int]
    ) -> Float[Tensor, "B C H2 W2"]:
        weight, bias = self.conv.weight, self.conv.bias
        doubled = size == (2 * x.shape[2], 2 * x.shape[3])
        plain = self.conv.padding_mode == "zeros"
        # Making the 4 x 4 filter costs as much as computing some pixels: with 1,280 channels and
        # 128 pixels this takes 4.4 times as long, not half (two cores of a Xeon, float32).
        many = x[:, 0].numel() >= x.shape[1]
        on_cpu = x.device.type == "cpu" and torch.finfo(weight.dtype).bits >= 32
        if doubled and plain and many and on_cpu:
            # Several of the 3 x 3 pixels under the filter are equal, so 4 products replace 9:
            # a training step of this layer takes 0.45 of the time (128 channels, float32).
            pairs = over_pairs(weight) if self.pairs is None else self.pairs
            return F.conv_transpose2d(x, pairs, bias, stride=2, padding=1)
        wide: Tensor = self.conv(F.interpolate(x, size=size))
        return wide


def over_pairs(weight: Float[Tensor, "O C 3 3"]) -> Float[Tensor, "C O 4 4"]:
    """The transposed convolution that equals doubling the pixels, then convolving with `weight`."""
    weight = weight.flip(2, 3)
    weight = F.pad(weight, (1, 0)) + F.pad(weight, (0, 1))  # (O, C, 3, 4)
    weight = F.pad(weight, (0, 0, 1, 0)) + F.pad(weight, (0, 0, 0, 1))  # (O, C, 4, 4)
    return weight.transpose(0, 1)

"""CLIP's modified ResNet: three stem convolutions, blurred strides, pooling by attention
(arXiv:2103.00020, section 2.4).

Dimensions: B batch, C channels, H height, W width, h w the last planes, D their channels,
E width of the shared space.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.attention import Attention
from triptych.nn.checks import require_at_least
from triptych.nn.position import resize_grid

EXPANSION = 4
STRIDE = 32
"""Pixels per side of one cell of the last feature map."""


@dataclass(frozen=True)
@bounded
class ResNetConfig:
    """A modified ResNet."""

    size: int = 224
    width: int = 64
    layers: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of the four stages."""
    heads: int = 32
    """Heads of the pooling; published models have one for every 64 channels of the last stage."""

    def __post_init__(self) -> None:
        require_at_least(self, STRIDE, "size")
        require_at_least(self, 2, "width")
        require_at_least(self, 1, "heads")
        if len(self.layers) != 4:
            raise ValueError(f"a modified ResNet has four stages, not {len(self.layers)}")
        if self.width * 8 * EXPANSION % self.heads:
            raise ValueError(
                f"{self.width * 8 * EXPANSION} channels do not divide into {self.heads} heads"
            )


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with a residual connection; average pooling in place of
    strides avoids aliasing.
    """

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = width * EXPANSION
        self.stride = stride
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        self.shortcut_norm: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Conv2d(channels, out, 1, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(out)
        nn.init.zeros_(self.norm3.weight)  # each block begins as its shortcut

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut_norm(self.shortcut(x)))


class PlanePool(nn.Module):
    """Attention pooling whose query is the mean of all positions."""

    def __init__(self, side: int, channels: int, heads: int, dim: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(side**2 + 1, channels) * channels**-0.5)
        self.attn = Attention(channels, heads, out_dim=dim)
        for projection in self.attn.children():
            nn.init.normal_(projection.weight, std=channels**-0.5)  # type: ignore[arg-type]

    def _places(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B T D"]:
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        position = torch.cat([self.position[:1], resize_grid(self.position[1:], grid)])
        return x + position.to(x.dtype)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B E"]:
        places = self._places(x)
        pooled: Tensor = self.attn(places[:, :1], places)[:, 0]
        return pooled

    def alone(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B h w E"]:
        """Each position pooled as if it were the only one (arXiv:2112.01071)."""
        own: Tensor = self.attn.out_proj(self.attn.v_proj(self._places(x)[:, 1:]))
        return own.reshape(len(x), x.shape[2], x.shape[3], -1)


class ModifiedResNet(nn.Module):
    """The image tower of RN50 to RN50x64."""

    def __init__(self, config: ResNetConfig, dim: int):
        super().__init__()
        self.config = config
        half, width = config.width // 2, config.width
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(half), nn.BatchNorm2d(half)
        self.norm3 = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        channels = width
        for stage, count in enumerate(config.layers):
            wide = width * 2**stage
            blocks = nn.ModuleList()
            for block in range(count):
                blocks.append(Bottleneck(channels, wide, 2 if stage and not block else 1))
                channels = wide * EXPANSION
            self.stages.append(blocks)
        self.pool = PlanePool(config.size // STRIDE, channels, config.heads, dim)

    def planes(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        if min(pixels.shape[2:]) < STRIDE:
            raise ValueError(f"a picture of {tuple(pixels.shape[2:])} is smaller than {STRIDE}")
        x = pixels
        for conv, norm in (
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
        ):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for blocks in self.stages:
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        return x

    def forward(self, pixels: Float[Tensor, "B C H W"], keep: float = 1.0) -> Float[Tensor, "B E"]:
        """`keep` must be 1: convolutions have no patches to drop."""
        if keep != 1:
            raise ValueError("patch dropout needs a vision transformer: a ResNet has no patches")
        pooled: Tensor = self.pool(self.planes(pixels))
        return pooled

    def patches(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w E"]:
        """Each position in the shared space."""
        return self.pool.alone(self.planes(pixels))

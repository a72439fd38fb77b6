"""Patch embedding, and dropping random patches.

Dimensions: B batch, C channels, H height, W width, h w the grid, P Q patches, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def patch_embedding(
    width: int, patch: int, stem: tuple[int, ...], *, bias: bool, stem_group: int = 0
) -> nn.Module:
    """One convolution per patch, or a stem of small convolutions that each halve the side.

    Small transformers train faster with a stem (arXiv:2106.14881). `stem_group` is the number of
    its channels that are normalised together, 0 for all: small groups preserve features of low
    contrast, such as the texture of a background.
    """
    if not stem:
        return nn.Conv2d(3, width, patch, patch, bias=bias)
    layers: list[nn.Module] = []
    channels = 3
    for wider in stem:
        groups = wider // stem_group if stem_group else 1
        layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.GroupNorm(groups, wider), nn.GELU()]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


def crop_to_patches(pixels: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B C h w"]:
    """Crops the right and bottom so that patches tile the pictures.

    Raises:
        ValueError: a picture smaller than one patch.
    """
    height, width = (side // patch * patch for side in pixels.shape[2:])
    if not height or not width:
        raise ValueError(f"a picture of {tuple(pixels.shape[2:])} has no {patch} pixel patch")
    return pixels[:, :, :height, :width]


def check_stem(size: int, patch: int, stem: tuple[int, ...], group: int) -> None:
    """Raises ValueError where a stem has another patch size, does not tile the picture, or has
    channels that groups do not divide.
    """
    if min(stem, default=1) < 1:
        raise ValueError(f"the channels of a stem must be positive numbers, not {stem}")
    if group < 0 or (group and any(channels % group for channels in stem)):
        raise ValueError(
            f"stem_group is the number of channels normalised together, 0 for all, and must "
            f"divide each of {stem}: {group} does not"
        )
    if stem and 2 ** len(stem) != patch:
        raise ValueError(
            f"a stem of {len(stem)} convolutions makes patches of {2 ** len(stem)} pixels, not "
            f"{patch}"
        )
    if stem and size % patch:
        raise ValueError(f"patches of {patch} pixels do not tile a side of {size}")


def keep_patches(x: Float[Tensor, "B P D"], keep: float) -> Float[Tensor, "B Q D"]:
    """A random share of the patches of each picture, at least one (arXiv:2212.00794)."""
    count = max(1, round(keep * x.shape[1]))
    chosen = torch.rand(x.shape[:2], device=x.device).topk(count, dim=1).indices
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))

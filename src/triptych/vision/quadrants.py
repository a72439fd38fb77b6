"""Pictures of which only some quadrants are visible, as a condition (Sohn 2015).

Dimensions: B pictures, C channels, H height, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def partial_view(
    image: Float[Tensor, "B C H W"], mask: Float[Tensor, "#B 1 H W"]
) -> Float[Tensor, "B C+1 H W"]:
    """The condition of `image`: the pixels where the mask is 1, zeros elsewhere, and the mask."""
    mask = mask.to(image.dtype).expand(len(image), 1, *image.shape[2:])
    return torch.cat([image * mask, mask], 1)


def quadrant_mask(height: int, width: int, visible: int) -> Float[Tensor, "1 1 H W"]:
    """1 where a quadrant is visible: the lower left; the left half; all but the lower right.

    The order of Pyro's re-run of Sohn's experiment (pyro.ai/examples/cvae.html).
    """
    if visible not in (1, 2, 3):
        raise ValueError(f"1, 2 or 3 quadrants can be visible, not {visible}")
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 2 :, : width // 2] = 1
    if visible >= 2:
        mask[..., : width // 2] = 1
    if visible == 3:
        mask[..., : height // 2, :] = 1
    return mask

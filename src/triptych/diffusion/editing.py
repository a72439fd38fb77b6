"""Starting from a picture, and keeping parts of one: written once for every model.

Image-to-image starts part of the way; inpainting is a denoiser that knows some of the answer. Both
compose with every sampler and every guidance.

Dimensions: B pictures, C channels, H height, W width.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from triptych.diffusion.samplers import Denoiser, Level
from triptych.diffusion.samplers.levels import downward_steps


def start_at(levels: Sequence[Level], strength: float) -> list[Level]:
    """The levels of the last `strength` of the way: 1 forgets the picture, towards 0 it stays.

    int(steps * strength) steps towards the picture are left, as in diffusers.

    Raises:
        ValueError: strength is not in (0, 1], or so small that no step is left.
    """
    begins = downward_steps(levels)
    steps = len(begins)
    left = int(steps * strength)
    if not 0 < strength <= 1 or left < 1:
        least = 1 / steps
        raise ValueError(
            f"strength {strength} leaves no step of {steps}: give {least:.3g} to 1, or more steps"
        )
    return list(levels[begins[steps - left] :])


def noised(
    x0: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], level: Level
) -> Float[Tensor, "B C H W"]:
    """A picture at a level: where image-to-image starts."""
    return level.alpha * x0 + level.sigma * noise


def inpainting(
    denoise: Denoiser,
    known: Float[Tensor, "B C H W"],
    paint: Bool[Tensor, "#B 1 H W"],
    noise: Float[Tensor, "B C H W"],
    first: Level | None = None,
) -> Denoiser:
    """A denoiser that draws where `paint` is True and knows the picture elsewhere.

    The network sees the known part with `noise` at its level, and its answer there is replaced by
    the truth; so a sampler that ends at sigma 0 ends on the known part exactly. What is painted
    equals replacing the known part of x after every step, as diffusers does. At the level `first`
    x is taken as it is: diffusers begins with pure noise everywhere, where nothing of a step before
    could be replaced.
    """

    def denoise_unknown(x: Tensor, level: Level) -> Tensor:
        seen = x if level == first else x.where(paint, noised(known, noise, level))
        return denoise(seen, level).where(paint, known)

    return denoise_unknown

"""Image-to-image and inpainting, for every model, sampler and guidance.

Image-to-image starts at a later level; inpainting is a denoiser that returns the known part.

Dimensions: B pictures, C channels, H height, W width.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from triptych.diffusion.samplers.levels import downward_steps
from triptych.diffusion.steps import Denoiser, Level


def start_at(levels: Sequence[Level], strength: float) -> list[Level]:
    """The levels of the last `strength` of the steps: 1 ignores the picture, near 0 keeps it.

    Keeps int(steps * strength) steps towards the picture, as diffusers does.

    Raises:
        ValueError: strength is not in (0, 1], or so small that no step is left.
    """
    begins = downward_steps(levels)
    steps = len(begins)
    left = int(steps * strength)
    if strength > 1 or left < 1:
        least = 1 / steps
        raise ValueError(
            f"strength {strength} leaves no step of {steps}: give {least:.3g} to 1, or more steps"
        )
    return list(levels[begins[steps - left] :])


def add_noise(
    x0: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], level: Level
) -> Float[Tensor, "B C H W"]:
    """A picture at a noise level: the start of image-to-image."""
    return level.alpha * x0 + level.sigma * noise


def inpainting(
    denoise: Denoiser,
    known: Float[Tensor, "B C H W"],
    paint: Bool[Tensor, "#B 1 H W"],
    noise: Float[Tensor, "B C H W"],
    first: Level | None = None,
) -> Denoiser:
    """A denoiser that generates where `paint` is True and keeps the picture `known` elsewhere.

    The network's input has the known part with `noise` at the level, and its x0 there is replaced
    by `known`; so a sampler that ends at sigma 0 keeps the known part exactly. The painted part
    equals that of replacing the known part of x after every step, as diffusers does. At the level
    `first` x is not replaced: diffusers starts from pure noise everywhere.
    """

    def denoise_unknown(x: Tensor, level: Level) -> Tensor:
        seen = x if level == first else x.where(paint, add_noise(known, noise, level))
        return denoise(seen, level).where(paint, known)

    return denoise_unknown

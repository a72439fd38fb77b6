"""A differentiable score of pictures, such as a CLIP's, guides any denoiser.

Bayes says log p(x | y) = log p(x) + log p(y | x) up to a constant, and Tweedie's formula turns a
gradient of log p(x) at x = alpha x0 + sigma noise into an expected picture, E[x0 | x] =
(x + sigma^2 grad log p(x)) / alpha (Efron 2011, equation 1.4). So a likelihood shifts x0 of a
denoiser by (sigma^2 / alpha) grad_x log p(y | x): classifier guidance (arXiv:2105.05233, section 4)
written for x0, with CLIP as the classifier (arXiv:2112.05744; arXiv:2112.10741, section
2.3).

Dimensions: B pictures.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.steps import Denoiser, Level

Score = Callable[[Tensor], Float[Tensor, " B"]]
"""Clean pictures x0 in [-1, 1] to log p(y | x0)."""


def guide_by_score(
    denoise: Denoiser,
    score: Score,
    scale: float = 1.0,
    *,
    most: float = math.inf,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """A denoiser guided towards pictures with a high score.

    The score is taken at the denoiser's x0, never at a noisy picture, and its gradient goes back
    through the denoiser: log p(y | x) is approximated by log p(y | E[x0 | x]) (arXiv:2209.14687,
    equation 10). This is exact for a score linear in x0 and Gaussian data; a curved score guides
    too strongly at high noise. No guidance at pure noise (alpha 0), or outside the interval.

    Args:
        denoise: Must be differentiable in x.
        score: Differentiable; row i may depend on picture i only.
        scale: 1 is Bayes's rule; 0 returns `denoise`.
        most: The largest root mean square of the shift of one picture's x0.
        interval: Of sigma / alpha, in which to guide.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, not {scale}")
    if not most > 0:
        raise ValueError(f"most must be above 0, not {most}")
    if scale == 0:
        return denoise

    def guided(x: Tensor, level: Level) -> Tensor:
        if level.alpha == 0 or not interval[0] < level.ratio <= interval[1]:
            return denoise(x, level)
        # samplers run in inference mode, whose tensors have no gradients: take a copy outside it
        with torch.inference_mode(False), torch.enable_grad():
            at = x.clone().detach().requires_grad_()
            x0 = denoise(at, level)
            scores = score(x0)
            if scores.shape != (len(x),):
                raise ValueError(
                    f"a score is one number a picture, ({len(x)},), not {tuple(scores.shape)}"
                )
            (slope,) = torch.autograd.grad(scores.sum(), at)
        shift = scale * level.sigma**2 / level.alpha * slope
        if math.isfinite(most):
            size = shift.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))
            shift = shift * (most / size.clamp(min=most))
        return x0.detach() + shift

    return guided

"""A differentiable score of pictures, such as a CLIP's, guides any denoiser.

Bayes says log p(x | y) = log p(x) + log p(y | x) up to a constant, and Tweedie's formula turns a
gradient of log p(x) at x = alpha x0 + sigma noise into an expected picture, E[x0 | x] =
(x + sigma^2 grad log p(x)) / alpha (Efron 2011, equation 1.4). So a likelihood moves a denoiser's
answer by (sigma^2 / alpha) grad_x log p(y | x): classifier guidance (arXiv:2105.05233, section 4)
written for x0, with CLIP in place of the classifier (arXiv:2112.05744; arXiv:2112.10741, section
2.3).

Dimensions: B pictures.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.samplers import Denoiser, Level

Score = Callable[[Tensor], Float[Tensor, " B"]]
"""Clean pictures in [-1, 1] to the logarithm of how likely each shows what is wanted."""


def clip_guided(
    denoise: Denoiser,
    score: Score,
    scale: float = 1.0,
    *,
    most: float = math.inf,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """A denoiser that leads towards pictures with a high score.

    The score sees the denoiser's x0, never a noisy picture, and its gradient goes back through the
    denoiser: log p(y | x) is taken for log p(y | E[x0 | x]) (arXiv:2209.14687, equation 10). That
    is exact for a score that is linear in x0 where the data are Gaussian; a curved one is pulled at
    too strongly in the noise. At pure noise, alpha 0, where x says nothing of x0, and outside the
    interval of sigma / alpha the answer is the plain one.

    Args:
        denoise: What samplers ask; must be differentiable in x.
        score: Differentiable; row i may depend on picture i only.
        scale: 1 is Bayes's rule, 0 costs nothing.
        most: The root mean square that x0 of one picture may be moved by.
        interval: Of sigma / alpha: where to guide.
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
        # samplers run in inference mode, whose tensors know no gradients: a copy outside it does
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

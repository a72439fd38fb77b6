"""What samplers are made of: levels, denoisers, steps, and the exact solutions between two levels.

A denoiser answers one question: given `x = alpha * x0 + sigma * noise`, what is the expected x0?
Parameterisation, guidance and precision are hidden behind it; a schedule supplies the levels.

Samplers solve dy/ds = noise(x), in y = x / alpha and s = sigma / alpha (Song et al.,
arXiv:2010.02502, equation 14; Karras et al., arXiv:2206.00364, equation 1). Steps are written in x,
so that a start at alpha 0, pure noise, needs no special case; a step that would need its infinite s
is of first order there.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Level(NamedTuple):
    """A point of a noise schedule; alpha may be 0 (pure noise) at the start, sigma 0 at the end."""

    alpha: float
    sigma: float
    time: float | None = None
    """The timestep that the network takes. None between two levels of a sampler: the denoiser then
    computes it from its schedule.
    """

    @property
    def ratio(self) -> float:
        """s = sigma / alpha: the noise level of x / alpha."""
        return self.sigma / self.alpha if self.alpha else math.inf


Denoiser = Callable[[Tensor, Level], Tensor]
"""(x, level) to the expected x0."""


SingleStep = Callable[[Denoiser, Tensor, Level, Level], tuple[Tensor, Tensor]]
"""(denoiser, x, level, following) to x at `following`, and the last x0."""


class Step(NamedTuple):
    x: Tensor  # the sample at `level`
    x0: Tensor  # the denoiser's latest estimate of the clean sample
    level: Level


def predicted_noise(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise in x for this x0: also the slope dy/ds."""
    return (x - level.alpha * x0).div_(level.sigma)


def advance(x: Tensor, x0: Tensor, level: Level, following: Level) -> Tensor:
    """The exact solution for a constant x0: alpha' x0 + sigma' noise."""
    share = following.sigma / level.sigma
    return (share * x).add_((following.alpha - level.alpha * share) * x0)


def slide(x: Tensor, slope: Tensor, level: Level, following: Level) -> Tensor:
    """The exact solution for constant noise. Needs alpha above 0."""
    share = following.alpha / level.alpha
    return (share * x).add_((following.sigma - level.sigma * share) * slope)


def between(level: Level, following: Level, share: float) -> Level:
    """The level at a share of the step in log s. Both ends need alpha and sigma above 0."""
    return Level(
        level.alpha ** (1 - share) * following.alpha**share,
        level.sigma ** (1 - share) * following.sigma**share,
    )


def only_first_order(level: Level, following: Level) -> bool:
    """Whether only a first-order step is defined: at pure noise, and to the clean picture."""
    return level.alpha == 0 or following.sigma == 0


def log_step(level: Level, following: Level) -> float:
    """h, the step in the logarithm of alpha / sigma; positive towards the picture."""
    if only_first_order(level, following):
        return math.inf
    return math.log(level.ratio / following.ratio)


def by_euler(denoise: Denoiser, x: Tensor, level: Level, following: Level) -> tuple[Tensor, Tensor]:
    """A step of first order, and x0 at its start."""
    x0 = denoise(x, level)
    return advance(x, x0, level, following), x0


def by_limited_x0(
    denoise: Denoiser,
    x: Tensor,
    level: Level,
    following: Level,
    *,
    limit: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """A step of first order whose x0 is limited, and whose noise is that of the unlimited x0, as
    DDIM with clip_sample in diffusers.
    """
    x0 = denoise(x, level)
    noise = predicted_noise(x, x0, level)
    limited = limit(x0)
    return following.alpha * limited + following.sigma * noise, limited


def by_trapezoid(
    denoise: Denoiser, x: Tensor, level: Level, following: Level
) -> tuple[Tensor, Tensor]:
    """A step with the mean slope of its two ends, where that is defined, and the last x0."""
    ahead, x0 = by_euler(denoise, x, level, following)
    if only_first_order(level, following):
        return ahead, x0
    slope = predicted_noise(x, x0, level)
    x0 = denoise(ahead, following)
    slope = (slope + predicted_noise(ahead, x0, following)) / 2
    return slide(x, slope, level, following), x0


def by_midpoint(
    denoise: Denoiser, x: Tensor, level: Level, following: Level
) -> tuple[Tensor, Tensor]:
    """A step with the slope at its midpoint in log s, where that is defined, and the last x0."""
    x0 = denoise(x, level)
    if only_first_order(level, following):
        return advance(x, x0, level, following), x0
    middle = between(level, following, 0.5)
    halfway = advance(x, x0, level, middle)
    x0 = denoise(halfway, middle)
    return slide(x, predicted_noise(halfway, x0, middle), level, following), x0

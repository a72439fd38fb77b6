"""Stochastic samplers: like `samplers.py`, with fresh noise on the way.

`noise(level, following)` is standard normal noise for the way between two levels: independent
draws, or the increments of one Brownian path, divided by their standard deviation
(`diffusion/noise.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from triptych.diffusion.samplers import (
    Denoiser,
    Level,
    Step,
    advance,
    between,
    by_midpoint,
    by_trapezoid,
    plain,
    stride,
)

Noise = Callable[[Level, Level], Tensor]
VarianceDenoiser = Callable[[Tensor, Level], tuple[Tensor, Tensor]]


def ancestor(level: Level, following: Level, eta: float = 1.0) -> tuple[Level, float]:
    """The level to go down to, and the standard deviation of the noise that leads up again.

    With eta 1 the whole is the reverse of adding noise: q(x' | x, x0) (arXiv:2006.11239, equation
    7). Written for s = sigma / alpha, where any schedule adds noise alike.
    """
    share = (following.ratio / level.ratio) ** 2 if level.alpha else 0.0
    up = eta * following.sigma * math.sqrt(max(0.0, 1 - share))
    down = math.sqrt(max(0.0, following.sigma**2 - up**2))
    return Level(following.alpha, down), up


def ancestral(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """DDPM, "Euler a" and DDIM with eta: one algorithm under three names.

    For alpha^2 + sigma^2 = 1, up = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a') with a = alpha^2,
    which is DDIM's sigma (arXiv:2010.02502, equation 16); with eta 1 that is DDPM's posterior
    variance (arXiv:2006.11239, section 3.2), and the ancestral Euler step of k-diffusion.
    """
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        down, up = ancestor(level, following, eta)
        x = advance(x, x0, level, down)
        if up:
            x = x + up * noise(level, following)
        yield Step(x, x0, following)


def learned_variance(
    denoise: VarianceDenoiser, x: Tensor, levels: Sequence[Level], noise: Noise
) -> Iterator[Step]:
    """Ancestral sampling with the variance that the network tells (arXiv:2102.09672, equation 15).

    The denoiser returns x0 and v in [0, 1]: the log-variance of a step lies between the posterior's
    (v = 0) and that of the noise added (v = 1).
    """
    for level, following in pairwise(levels):
        x0, v = denoise(x, level)
        down, up = ancestor(level, following)
        x = advance(x, x0, level, down)
        if up:
            added = added_noise(level, following)
            x = x + (v * math.log(added) + (1 - v) * math.log(up)).exp() * noise(level, following)
        yield Step(x, x0, following)


def added_noise(level: Level, following: Level) -> float:
    """sqrt(beta): the standard deviation that leads from the following level back to this one."""
    return math.sqrt(level.sigma**2 - (level.alpha / following.alpha * following.sigma) ** 2)


def dpm2_ancestral(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """`dpm2` down to the ancestor, then noise; two calls a step."""
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        down, up = ancestor(level, following, eta)
        if plain(level, down):
            x = advance(x, x0, level, down)
        else:
            x, x0 = by_midpoint(denoise, x, x0, level, down)
        if up:
            x = x + up * noise(level, following)
        yield Step(x, x0, following)


def dpmpp_2s_ancestral(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++ (2S) down to the ancestor, then noise; two calls a step (arXiv:2211.01095,
    algorithm 1).
    """
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        down, up = ancestor(level, following, eta)
        if not plain(level, down):
            middle = between(level, down, 0.5)
            x0 = denoise(advance(x, x0, level, middle), middle)
        x = advance(x, x0, level, down)
        if up:
            x = x + up * noise(level, following)
        yield Step(x, x0, following)


def dpmpp_sde(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, by the middle; two calls and two draws a step.

    Both draws of a step cover overlapping ways, so the noise should be a Brownian path.
    """
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        if not plain(level, following):
            middle = between(level, following, 0.5)
            down, up = ancestor(level, middle, eta)
            halfway = advance(x, x0, level, down)
            if up:
                halfway = halfway + up * noise(level, middle)
            x0 = denoise(halfway, middle)
        down, up = ancestor(level, following, eta)
        x = advance(x, x0, level, down)
        if up:
            x = x + up * noise(level, following)
        yield Step(x, x0, following)


def dpmpp_2m_sde(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++ (2M) for the SDE, midpoint form; one call a step (arXiv:2211.01095, 4.2)."""
    before: tuple[Tensor, float] | None = None
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        h = stride(level, following)
        guess = x0
        if before and math.isfinite(before[1]) and math.isfinite(h):
            guess = x0 + (x0 - before[0]) * (h / before[1] / 2)
        x = drifted(x, guess, level, following, eta, noise)
        before = (x0, h)
        yield Step(x, x0, following)


def drifted(
    x: Tensor, x0: Tensor, level: Level, following: Level, eta: float, noise: Noise
) -> Tensor:
    """The exact step of the SDE with constant x0: s' / s falls to the power 1 + eta.

    dy = (1 + eta) (y - x0) d(log s) + noise; its variance is s'^2 (1 - (s' / s)^(2 eta)).
    """
    share = following.ratio / level.ratio if level.alpha else 0.0
    up = following.sigma * math.sqrt(1 - share ** (2 * eta)) if eta else 0.0
    kept = Level(following.alpha, following.sigma * share**eta if eta else following.sigma)
    x = advance(x, x0, level, kept)
    return x + up * noise(level, following) if up else x


def dpmpp_2m_sde_heun(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """`dpmpp_2m_sde` with x0 linear in log s over the step instead of taken at its middle."""
    return multistep_sde(denoise, x, levels, noise, eta, 2)


def dpmpp_3m_sde(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++ (3M) for the SDE: x0 quadratic in log s; one call a step."""
    return multistep_sde(denoise, x, levels, noise, eta, 3)


def multistep_sde(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float, order: int
) -> Iterator[Step]:
    """Exponential integrator with x0 as a polynomial in log s through its last values.

    The quadratic term has the weight that the published solvers give it (arXiv:2211.01095, appendix
    B.2; k-diffusion), half of what integrating the polynomial gives: the name is the algorithm.
    """
    past: list[tuple[Tensor, float]] = []  # x0, and the stride that followed it; newest first
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        h = stride(level, following)
        guess = x0
        if past and math.isfinite(h):
            decay = h * (1 + eta)
            first = (x0 - past[0][0]) / (past[0][1] / h)  # divided differences in units of h
            phi = (-math.expm1(-decay) - decay) / -decay  # 1 - (1 - exp(-decay)) / decay
            if len(past) > 1:
                near, far = past[0][1] / h, past[1][1] / h
                older = (past[0][0] - past[1][0]) / far
                second = (first - older) / (near + far)
                guess = guess + (
                    phi * (first + second * near) - (phi / decay - 0.5) * second
                ) / -math.expm1(-decay)
            else:
                guess = guess + phi * first / -math.expm1(-decay)
        x = drifted(x, guess, level, following, eta, noise)
        past = [(x0, h), *past][: order - 1] if level.alpha else []
        yield Step(x, x0, following)


def sa_solver(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 1.0,
    stirred: tuple[float, float] = (200.0, 800.0),
) -> Iterator[Step]:
    """SA-Solver: stochastic Adams steps, a predictor and a corrector of second order, one call a
    step (arXiv:2309.05019, algorithm 1).

    tau^2 of the paper is eta where the network is told a time within `stirred`, and 0 elsewhere
    (diffusers' tau_func; at times that a sampler found itself, always eta). The corrector goes from
    the same point by the same noise once the end is seen. Both take x0's slope with the weight
    h^2 / 2 of short steps, as the authors do.
    """
    past: tuple[Tensor, Level] | None = None  # x0 of the step before, at a finite level
    origin, fresh, drift = x, x, 0.0  # where that step began, its noise and its tau^2
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        slope = None
        if past is not None:
            h = stride(past[1], level)
            slope = (x0 - past[0]) / h
            x = drifted(origin, *past, level, drift, lambda *_, same=fresh: same)
            x = x + level.alpha * (1 + drift) * h**2 / 2 * slope
        told = level.time is None or stirred[0] <= level.time <= stirred[1]
        origin, drift = x, eta if told else 0.0
        if eta:
            fresh = noise(level, following)
        h = stride(level, following)
        x = drifted(x, x0, level, following, drift, lambda *_, same=fresh: same)
        if slope is not None and number < len(levels) - 2:  # the last step is of first order
            x = x + following.alpha * (1 + drift) * h**2 / 2 * slope
        past = (x0, level) if level.alpha else None
        yield Step(x, x0, following)


def lcm(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """A consistency model: all the way to x0, then fresh noise (arXiv:2303.01469, algorithm 1)."""
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        x = following.alpha * x0
        if following.sigma:
            x = x + following.sigma * noise(level, following)
        yield Step(x, x0, following)


def restart(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """`heun`, and fresh noise wherever the levels go up again (arXiv:2306.14878, algorithm 1).

    The noise makes up for what the steps before did wrong. `walks.restarting` makes such levels;
    of levels that only go down this is `heun`.
    """
    x0 = x
    for level, following in pairwise(levels):
        if following.ratio > level.ratio:
            x = renoised(x, level, following, noise)
        else:
            x, x0 = by_trapezoid(denoise, x, level, following)
        yield Step(x, x0, following)


def tcd(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Trajectory consistency: each step goes on too far, and noise leads back up
    (arXiv:2402.19159, algorithm 2).

    `walks.overshooting` makes such levels; of levels that only go down this is `euler`.
    """
    x0 = x
    for level, following in pairwise(levels):
        if following.ratio > level.ratio:
            x = renoised(x, level, following, noise)
        else:
            x0 = denoise(x, level)
            x = advance(x, x0, level, following)
        yield Step(x, x0, following)


def renoised(x: Tensor, level: Level, following: Level, noise: Noise) -> Tensor:
    """A sample of a level as one of a noisier level: what the forward process does."""
    kept = following.alpha / level.alpha
    return kept * x + added_noise(following, level) * noise(level, following)

"""Stochastic samplers: like `deterministic.py`, with fresh noise in each step.

`noise(level, following)` is standard normal noise for the step between two levels: independent
draws, or the increments of one Brownian path divided by their standard deviation
(`diffusion/noise.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from triptych.diffusion.samplers.deterministic import Ending, ends_first_order
from triptych.diffusion.steps import (
    Denoiser,
    Level,
    SingleStep,
    Step,
    advance,
    between,
    by_euler,
    by_midpoint,
    by_trapezoid,
    log_step,
    only_first_order,
)

Noise = Callable[[Level, Level], Tensor]
VarianceDenoiser = Callable[[Tensor, Level], tuple[Tensor, Tensor]]


def ancestor(level: Level, following: Level, eta: float = 1.0) -> tuple[Level, float]:
    """The level to go down to, and the standard deviation of the noise then added.

    With eta 1 the two together sample q(x' | x, x0) (arXiv:2006.11239, equation 7). Written for
    s = sigma / alpha, over which every schedule adds noise in the same way.
    """
    share = (following.ratio / level.ratio) ** 2 if level.alpha else 0.0
    up = eta * following.sigma * math.sqrt(max(0.0, 1 - share))
    down = math.sqrt(max(0.0, following.sigma**2 - up**2))
    return Level(following.alpha, down), up


def ancestral_step(
    x: Tensor, x0: Tensor, level: Level, following: Level, eta: float, noise: Noise
) -> Tensor:
    """A step of first order down to the ancestor, and the noise then added."""
    down, up = ancestor(level, following, eta)
    x = advance(x, x0, level, down)
    return x + up * noise(level, following) if up else x


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
        x = ancestral_step(x, x0, level, following, eta, noise)
        yield Step(x, x0, following)


def learned_variance(
    denoise: VarianceDenoiser, x: Tensor, levels: Sequence[Level], noise: Noise
) -> Iterator[Step]:
    """Ancestral sampling with a variance that the network predicts (arXiv:2102.09672, equation 15).

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
    """sqrt(beta): the standard deviation of the noise from `following` up to `level`."""
    return math.sqrt(level.sigma**2 - (level.alpha / following.alpha * following.sigma) ** 2)


def dpm2_ancestral(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """`dpm2` down to the ancestor, then noise; two calls a step."""
    for level, following in pairwise(levels):
        down, up = ancestor(level, following, eta)
        x, x0 = by_midpoint(denoise, x, level, down)
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
        down, _ = ancestor(level, following, eta)
        if not only_first_order(level, down):
            middle = between(level, down, 0.5)
            x0 = denoise(advance(x, x0, level, middle), middle)
        x = ancestral_step(x, x0, level, following, eta, noise)
        yield Step(x, x0, following)


def dpmpp_sde(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, midpoint method; two calls and two draws a step.

    The two draws of a step cover overlapping intervals, so the noise should be a Brownian path.
    """
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        if not only_first_order(level, following):
            middle = between(level, following, 0.5)
            x0 = denoise(ancestral_step(x, x0, level, middle, eta, noise), middle)
        x = ancestral_step(x, x0, level, following, eta, noise)
        yield Step(x, x0, following)


def dpmpp_2m_sde(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 1.0,
    *,
    ending: Ending = "never",
) -> Iterator[Step]:
    """DPM-Solver++ (2M) for the SDE, midpoint form; one call a step (arXiv:2211.01095, 4.2)."""
    before: tuple[Tensor, float] | None = None
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        h = log_step(level, following)
        guess = x0
        first_order = ends_first_order(number, levels, following, ending) or math.isinf(h)
        if before and math.isfinite(before[1]) and not first_order:
            guess = x0 + (x0 - before[0]) * (h / before[1] / 2)
        x = sde_step(x, guess, level, following, eta, noise)
        before = (x0, h)
        yield Step(x, x0, following)


def sde_step(
    x: Tensor, x0: Tensor, level: Level, following: Level, eta: float, noise: Noise
) -> Tensor:
    """The exact step of the SDE with constant x0.

    dy = (1 + eta) (y - x0) d(log s) + noise; its variance is s'^2 (1 - (s' / s)^(2 eta)).
    """
    share = following.ratio / level.ratio if level.alpha else 0.0
    up = following.sigma * math.sqrt(1 - share ** (2 * eta)) if eta else 0.0
    kept = Level(following.alpha, following.sigma * share**eta if eta else following.sigma)
    x = advance(x, x0, level, kept)
    return x + up * noise(level, following) if up else x


def multistep_sde(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 1.0,
    *,
    order: int,
    ending: Ending = "never",
) -> Iterator[Step]:
    """Exponential integrator with x0 as a polynomial in log s through its last values.

    The quadratic term has the weight of the published solvers (arXiv:2211.01095, appendix B.2;
    k-diffusion): half of what integrating the polynomial gives.
    """
    past: list[tuple[Tensor, float]] = []  # x0 and the log step from it; newest first
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        h = log_step(level, following)
        guess = x0
        if past and 0 < h < math.inf and not ends_first_order(number, levels, following, ending):
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
        x = sde_step(x, guess, level, following, eta, noise)
        past = [(x0, h), *past][: order - 1] if level.alpha else []
        yield Step(x, x0, following)


dpmpp_2m_sde_heun = partial(multistep_sde, order=2)
"""`dpmpp_2m_sde` with x0 linear in log s instead of constant at the midpoint's value."""

dpmpp_3m_sde = partial(multistep_sde, order=3)
"""DPM-Solver++ (3M) for the SDE: x0 quadratic in log s; one call a step."""


def sa_solver(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 1.0,
    noisy_times: tuple[float, float] = (200.0, 800.0),
    *,
    ending: Ending = "always",
) -> Iterator[Step]:
    """SA-Solver: stochastic Adams steps, a predictor and a corrector of second order, one call a
    step (arXiv:2309.05019, algorithm 1).

    The paper's tau^2 is eta at timesteps within `noisy_times` and 0 elsewhere (diffusers' tau_func;
    eta where a level has no timestep). Once the end of a step is evaluated, the corrector repeats
    the step from the same start with the same noise. Predictor and corrector weigh the slope of x0
    by h^2 / 2, the limit for short steps, as the authors do. The last step is of first order unless
    `ending` is `never`.
    """
    past: tuple[Tensor, Level] | None = None  # x0 of the step before, at a finite level
    origin, fresh, drift = x, x, 0.0  # start, noise and tau^2 of that step
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        slope = None
        if past is not None:
            h = log_step(past[1], level)
            slope = (x0 - past[0]) / h
            x = sde_step(origin, *past, level, drift, lambda *_, same=fresh: same)
            x = x + level.alpha * (1 + drift) * h**2 / 2 * slope
        noisy = level.time is None or noisy_times[0] <= level.time <= noisy_times[1]
        origin, drift = x, eta if noisy else 0.0
        if eta:
            fresh = noise(level, following)
        h = log_step(level, following)
        x = sde_step(x, x0, level, following, drift, lambda *_, same=fresh: same)
        first_order = number == len(levels) - 2 and (ending != "never" or math.isinf(h))
        if slope is not None and not first_order:
            x = x + following.alpha * (1 + drift) * h**2 / 2 * slope
        past = (x0, level) if level.alpha else None
        yield Step(x, x0, following)


def lcm(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """A consistency model: a jump to x0, then fresh noise (arXiv:2303.01469, algorithm 1)."""
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        x = following.alpha * x0
        if following.sigma:
            x = x + following.sigma * noise(level, following)
        yield Step(x, x0, following)


def solve_and_renoise(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, step: SingleStep
) -> Iterator[Step]:
    """The same step wherever the levels go down, and fresh noise wherever they go up again."""
    x0 = x
    for level, following in pairwise(levels):
        if following.ratio > level.ratio:
            x = renoise(x, level, following, noise)
        else:
            x, x0 = step(denoise, x, level, following)
        yield Step(x, x0, following)


restart = partial(solve_and_renoise, step=by_trapezoid)
"""`heun`, with fresh noise that contracts the errors of earlier steps (arXiv:2306.14878, algorithm
1), over `levels.restart_levels`.
"""

tcd = partial(solve_and_renoise, step=by_euler)
"""Trajectory consistency: each step overshoots, then noise is added (arXiv:2402.19159, algorithm
2), over `levels.tcd_levels`.
"""


def renoise(x: Tensor, level: Level, following: Level, noise: Noise) -> Tensor:
    """A sample at a noisier level, by the forward process."""
    kept = following.alpha / level.alpha
    return kept * x + added_noise(following, level) * noise(level, following)

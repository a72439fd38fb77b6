"""DPM-Solver of third order, with a fixed number of calls or with adaptive steps.

`singlestep.py` interpolates x0 at given levels; here the predicted noise is interpolated (Lu et
al., arXiv:2206.00927), and a step of order k has k evaluations, even in log s.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from triptych.diffusion.samplers.stochastic import Noise, ancestor
from triptych.diffusion.steps import (
    Denoiser,
    Level,
    Step,
    between,
    by_euler,
    log_step,
    predicted_noise,
    slide,
)

Evaluations = list[tuple[Tensor, Level]]  # the predicted noise at each level of a step


def fast_orders(calls: int) -> list[int]:
    """The orders of DPM-Solver-fast's steps: as many threes as possible, then lower orders."""
    threes, rest = divmod(calls, 3)
    if rest:
        return [3] * threes + [rest]
    return [3] * (threes - 1) + [2, 1] if calls else []


def dpm_fast(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """DPM-Solver-fast: steps of third order, then one or two of lower; one call a level.

    A step of order k spans k levels (`levels.dpm_fast_levels`). With eta above 0 a step goes down
    to the ancestor, and noise is added.
    """
    first = 0 if levels[0].alpha else 1  # log s needs alpha above 0
    last = len(levels) - 1 if levels[-1].sigma else len(levels) - 2
    if first:
        x, x0 = by_euler(denoise, x, levels[0], levels[1])
        yield Step(x, x0, levels[1])
    place = first
    for order in fast_orders(max(0, last - first)):
        level, following = levels[place], levels[place + order]
        down, up = descent(level, following, levels[last], eta)
        origin, at, evaluations = x, level, Evaluations()
        for part in range(1, order + 1):
            x0 = denoise(x, at)
            evaluations.append((predicted_noise(x, x0, at), at))
            at = between(level, down, part / order) if part < order else down
            x = step_by_noise(origin, evaluations, at, halved=order == 2)
            if part < order:
                yield Step(x, x0, at)
        if up:
            assert noise is not None
            x = x + up * noise(level, following)
        yield Step(x, x0, following)
        place += order
    if last < len(levels) - 1 and last >= first:
        x, x0 = by_euler(denoise, x, levels[last], levels[-1])
        yield Step(x, x0, levels[-1])


def step_by_noise(
    origin: Tensor, evaluations: Evaluations, target: Level, *, halved: bool = False
) -> Tensor:
    """From the start of a step to a level, with noise linear in log s through its first and last
    evaluation; or, `halved`, constant at the midpoint's value (arXiv:2206.00927, algorithms 1, 2).
    """
    noise, level = evaluations[0]
    straight = slide(origin, noise, level, target)
    if len(evaluations) == 1:
        return straight
    h = log_step(level, target)
    latest, at = evaluations[-1]
    weight = math.expm1(h) / 2 if halved else math.expm1(h) / h - 1
    return straight - target.sigma * weight * (h / log_step(level, at)) * (latest - noise)


def descent(level: Level, following: Level, least: Level, eta: float) -> tuple[Level, float]:
    """The ancestor, but not below the last level."""
    if not eta:
        return following, 0.0
    down, up = ancestor(level, following, eta)
    if down.ratio >= least.ratio:
        return down, up
    down = Level(following.alpha, following.alpha * least.ratio)
    return down, math.sqrt(max(0.0, following.sigma**2 - down.sigma**2))


class Tolerance(NamedTuple):
    """The tolerated error of adaptive steps; the defaults are k-diffusion's."""

    relative: float = 0.05
    absolute: float = 0.0078
    first: float = 0.05
    """The first step to try, in log s."""
    gains: tuple[float, float, float] = (0.0, 1.0, 0.0)
    """Gains of the PID controller: proportional, integral, derivative."""
    safety: float = 0.81
    """A step is rejected where the next one would be shorter than this share of it."""


LEAST_STEP = 1e-6  # in log s


def dpm_adaptive(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise | None = None,
    eta: float = 0.0,
    *,
    tolerance: Tolerance = Tolerance(),  # noqa: B008  immutable
) -> Iterator[Step]:
    """DPM-Solver-23: adaptive steps of third order (arXiv:2206.00927, appendix C; k-diffusion).

    Uses only the first and the last level. The error of a step is the difference of second and
    third order in x / alpha, relative to the larger of the absolute tolerance and the relative one
    times |x / alpha|; too large an error rejects the step. The step sizes depend on the picture in
    x, which therefore must be one alone.

    Raises:
        ValueError: more than one picture, or no step is short enough.
    """
    if len(x) > 1:
        raise ValueError(
            f"dpm_adaptive adapts its steps to the picture and takes one at a time, not "
            f"{len(x)}: draw them one by one, or use another sampler"
        )
    level = levels[0]
    if level.alpha == 0:
        x, x0 = by_euler(denoise, x, level, levels[1])
        level = levels[1]
        yield Step(x, x0, level)
    least = levels[-1] if levels[-1].sigma else levels[-2]
    control = _Controller(tolerance, 1.5 if eta else 3.0)
    before = x / level.alpha  # what the relative tolerance refers to
    while level.ratio > least.ratio:
        x0 = denoise(x, level)
        first = (predicted_noise(x, x0, level), level)
        while True:
            following = _next_level(level, least, control.h)
            down, up = descent(level, following, least, eta)
            low, high, x0 = _both_orders(denoise, x, first, down)
            low, high = low / down.alpha, high / down.alpha
            allowed = (tolerance.relative * low.abs().maximum(before.abs())).clamp(
                min=tolerance.absolute
            )
            if control.accepts(float(((low - high) / allowed).square().mean().sqrt())):
                break
        x, before = down.alpha * high, low
        if up:
            assert noise is not None
            x = x + up * noise(level, following)
        level = following
        yield Step(x, x0, level)
    if level is not levels[-1] and least is not levels[-1]:
        x, x0 = by_euler(denoise, x, level, levels[-1])
        yield Step(x, x0, levels[-1])


def _next_level(level: Level, least: Level, h: float) -> Level:
    whole = log_step(level, least)
    return least if h >= whole else between(level, least, h / whole)


def _both_orders(
    denoise: Denoiser, x: Tensor, first: tuple[Tensor, Level], target: Level
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of second and one of third order from the same three evaluations, and the last x0."""
    level = first[1]
    evaluations: Evaluations = [first]
    for part in (1, 2):
        at = between(level, target, part / 3)
        ahead = step_by_noise(x, evaluations, at)
        x0 = denoise(ahead, at)
        evaluations.append((predicted_noise(ahead, x0, at), at))
    return (
        step_by_noise(x, evaluations[:2], target, halved=True),
        step_by_noise(x, evaluations, target),
        x0,
    )


class _Controller:
    """The length of the next step from the errors of the last three (a PID controller; Soederlind,
    "Digital filters in adaptive time-stepping", ACM TOMS 2003, with its smooth limiter).
    """

    def __init__(self, tolerance: Tolerance, order: float):
        p, i, d = tolerance.gains
        self.powers = ((p + i + d) / order, -(p + 2 * d) / order, d / order)
        self.h, self.safety = tolerance.first, tolerance.safety
        self.inverses: list[float] = []

    def accepts(self, error: float) -> bool:
        """Whether a step with this error is accepted; sets h to the next step to try."""
        inverse = 1 / (error + 1e-8)
        latest = [inverse, *(self.inverses or [inverse, inverse])]
        factor = math.prod(e**power for e, power in zip(latest, self.powers, strict=True))
        factor = 1 + math.atan(factor - 1)
        accepted = factor >= self.safety
        if accepted:
            self.inverses = latest[:2]
        self.h *= factor
        if not self.h > LEAST_STEP:  # also where the error is NaN
            raise ValueError(
                "dpm_adaptive finds no step short enough for its tolerance: the network's output "
                "is not smooth or not finite. Use a sampler with fixed steps, such as dpmpp_2m"
            )
        return accepted

"""DPM-Solver of third order: in a fixed number of calls, and with steps that it finds itself.

`singlestep.py` takes x0 for smooth and looks where its levels are; here it is the noise (Lu et al.,
arXiv:2206.00927), and a step of order k looks at each k-th part of its way in log s.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from triptych.diffusion.samplers import (
    Denoiser,
    Level,
    Step,
    advance,
    between,
    predicted_noise,
    slide,
    stride,
)
from triptych.diffusion.samplers.stochastic import Noise, ancestor

Seen = list[tuple[Tensor, Level]]  # the noise at each level since a step's start


def fast_orders(calls: int) -> list[int]:
    """How DPM-Solver-fast spends its calls: threes, and what is left at the end."""
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

    A step of order k goes over k levels; `walks.grouped` puts its end where k-diffusion does. With
    eta above 0 it goes further down, to the ancestor, and noise leads up again.
    """
    first = 0 if levels[0].alpha else 1  # log s begins where alpha does
    last = len(levels) - 1 if levels[-1].sigma else len(levels) - 2
    if first:
        x, x0 = _straight(denoise, x, levels[0], levels[1])
        yield Step(x, x0, levels[1])
    place = first
    for order in fast_orders(max(0, last - first)):
        level, following = levels[place], levels[place + order]
        down, up = descent(level, following, levels[last], eta)
        origin, at, seen = x, level, Seen()
        for part in range(1, order + 1):
            x0 = denoise(x, at)
            seen.append((predicted_noise(x, x0, at), at))
            at = between(level, down, part / order) if part < order else down
            x = by_noise(origin, seen, at, halved=order == 2)
            if part < order:
                yield Step(x, x0, at)
        if up:
            assert noise is not None
            x = x + up * noise(level, following)
        yield Step(x, x0, following)
        place += order
    if last < len(levels) - 1 and last >= first:
        x, x0 = _straight(denoise, x, levels[last], levels[-1])
        yield Step(x, x0, levels[-1])


def by_noise(origin: Tensor, seen: Seen, target: Level, *, halved: bool = False) -> Tensor:
    """From where a step began to a level, with the noise linear in log s through its first and last
    value; or, `halved`, at its middle (arXiv:2206.00927, algorithms 1 and 2).
    """
    noise, level = seen[0]
    straight = slide(origin, noise, level, target)
    if len(seen) == 1:
        return straight
    h = stride(level, target)
    latest, at = seen[-1]
    weight = math.expm1(h) / 2 if halved else math.expm1(h) / h - 1
    return straight - target.sigma * weight * (h / stride(level, at)) * (latest - noise)


def descent(level: Level, following: Level, least: Level, eta: float) -> tuple[Level, float]:
    """The ancestor, but not below the level at which everything ends."""
    if not eta:
        return following, 0.0
    down, up = ancestor(level, following, eta)
    if down.ratio >= least.ratio:
        return down, up
    down = Level(following.alpha, following.alpha * least.ratio)
    return down, math.sqrt(max(0.0, following.sigma**2 - down.sigma**2))


def _straight(
    denoise: Denoiser, x: Tensor, level: Level, following: Level
) -> tuple[Tensor, Tensor]:
    x0 = denoise(x, level)
    return advance(x, x0, level, following), x0


class Tolerance(NamedTuple):
    """How exact adaptive steps are; the defaults are k-diffusion's."""

    relative: float = 0.05
    absolute: float = 0.0078
    first: float = 0.05
    """The first step that is tried, in log s."""
    gains: tuple[float, float, float] = (0.0, 1.0, 0.0)
    """Of the controller: how the step answers to the error, to its sum and to its change."""
    safety: float = 0.81
    """A step whose successor would be shorter than this share of it is taken back."""


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

    Of the levels only the ends count. The error of a step is what second and third order differ
    by, in x / alpha, against the absolute tolerance or the relative one times the picture's size;
    a step that is too long is taken back. Steps are found for the one picture in x: together with
    another it would be drawn in other steps.

    Raises:
        ValueError: there is more than one picture, or no step is short enough.
    """
    if len(x) > 1:
        raise ValueError(
            f"dpm_adaptive finds its steps by the picture, so that {len(x)} would change one "
            "another: draw one at a time, or use another sampler"
        )
    level = levels[0]
    if level.alpha == 0:
        x, x0 = _straight(denoise, x, level, levels[1])
        level = levels[1]
        yield Step(x, x0, level)
    least = levels[-1] if levels[-1].sigma else levels[-2]
    control = _Controller(tolerance, 1.5 if eta else 3.0)
    before = x / level.alpha  # the picture that the relative tolerance is of
    while level.ratio > least.ratio:
        x0 = denoise(x, level)
        first = (predicted_noise(x, x0, level), level)
        while True:
            following = _further(level, least, control.h)
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
        x, x0 = _straight(denoise, x, level, levels[-1])
        yield Step(x, x0, levels[-1])


def _further(level: Level, least: Level, h: float) -> Level:
    whole = stride(level, least)
    return least if h >= whole else between(level, least, h / whole)


def _both_orders(
    denoise: Denoiser, x: Tensor, first: tuple[Tensor, Level], target: Level
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of second and one of third order from the same three looks, and the last x0 seen."""
    level = first[1]
    seen: Seen = [first]
    for part in (1, 2):
        at = between(level, target, part / 3)
        ahead = by_noise(x, seen, at)
        x0 = denoise(ahead, at)
        seen.append((predicted_noise(ahead, x0, at), at))
    return by_noise(x, seen[:2], target, halved=True), by_noise(x, seen, target), x0


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
        """Whether a step with this error stands; either way h is what to try next."""
        inverse = 1 / (error + 1e-8)
        latest = [inverse, *(self.inverses or [inverse, inverse])]
        factor = math.prod(e**power for e, power in zip(latest, self.powers, strict=True))
        factor = 1 + math.atan(factor - 1)
        stands = factor >= self.safety
        if stands:
            self.inverses = latest[:2]
        self.h *= factor
        if not self.h > LEAST_STEP:  # nor where the error is no number
            raise ValueError(
                "dpm_adaptive finds no step short enough for its tolerance: the network's answers "
                "jump or are no numbers. Use a sampler with a number of steps, such as dpmpp_2m"
            )
        return stands

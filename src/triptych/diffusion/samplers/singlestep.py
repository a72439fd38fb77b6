"""Singlestep solvers: they look ahead within a step, and forget what they saw when it is over.

A step of order k goes from one level to the k-th after it. The levels between are where it looks;
each of them is reached by a step of lower order from the same start.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from triptych.diffusion.samplers import Denoiser, Level, Step, advance, stride


def dpmpp_2s(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """DPM-Solver++ (2S): second order over pairs of levels (arXiv:2211.01095, algorithm 1)."""
    return dpmpp_singlestep(denoise, x, levels, 2)


def dpmpp_3s(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """DPM-Solver++ (3S) over groups of three levels (arXiv:2211.01095, appendix B; diffusers).

    Of third order where the second level between lies two thirds of the way in log s, else of
    second.
    """
    return dpmpp_singlestep(denoise, x, levels, 3)


def dpmpp_singlestep(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], order: int
) -> Iterator[Step]:
    """Orders 1, 2, ... `order`, again and again; one call a level.

    What goes to the clean picture or begins at pure noise is a step of first order by itself.
    """
    start = x
    seen: list[tuple[Tensor, Level]] = []  # x0 at each level since the step's start
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        if len(seen) == order or following.sigma == 0 or (seen and seen[0][1].alpha == 0):
            seen = []
        if not seen:
            start = x
        seen.append((x0, level))
        x = _by_x0(start, seen, following)
        yield Step(x, x0, following)


def _by_x0(start: Tensor, seen: Sequence[tuple[Tensor, Level]], following: Level) -> Tensor:
    """From the start to a level, of the order that x0 was seen times."""
    x0, level = seen[0]
    straight = advance(start, x0, level, following)
    if len(seen) == 1:
        return straight
    h = stride(level, following)
    latest, at = seen[-1]
    rise = (latest - x0) * (h / stride(level, at))
    # x0 at its middle, or linear: the integral of exp(u - h) u / h over the step
    weight = -math.expm1(-h) / 2 if len(seen) == 2 else math.expm1(-h) / h + 1
    return straight + following.alpha * weight * rise

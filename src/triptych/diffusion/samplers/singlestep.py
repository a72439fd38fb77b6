"""Singlestep solvers: several evaluations within a step, none kept from earlier steps.

A step of order k goes from one level to the k-th after it. Each level between is reached by a step
of lower order from the same start, and evaluated there.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from triptych.diffusion.samplers.deterministic import Ending
from triptych.diffusion.steps import Denoiser, Level, Step, advance, log_step


def dpmpp_singlestep(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    order: int,
    *,
    ending: Ending = "never",
) -> Iterator[Step]:
    """Orders 1, 2, ... `order` in a cycle; one call a level.

    A step to the clean picture or from pure noise is of first order, and unless `ending` is `never`
    so is a last step that would have the full order.
    """
    start = x
    seen: list[tuple[Tensor, Level]] = []  # x0 at each level since the step's start
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        early = ending != "never" and number == len(levels) - 2 and len(seen) == order - 1
        starts_again = len(seen) == order or (seen and seen[0][1].alpha == 0)
        if starts_again or early or following.sigma == 0:
            seen = []
        if not seen:
            start = x
        seen.append((x0, level))
        x = _step_by_x0(start, seen, following)
        yield Step(x, x0, following)


dpmpp_2s = partial(dpmpp_singlestep, order=2)
"""DPM-Solver++ (2S): second order over pairs of levels (arXiv:2211.01095, algorithm 1)."""

dpmpp_3s = partial(dpmpp_singlestep, order=3)
"""DPM-Solver++ (3S) over groups of three levels (arXiv:2211.01095, appendix B; diffusers).

Third order where the second intermediate level is at two thirds of the step in log s, else second
order.
"""


def _step_by_x0(start: Tensor, seen: Sequence[tuple[Tensor, Level]], following: Level) -> Tensor:
    """From the start to a level; the order is the number of evaluations."""
    x0, level = seen[0]
    straight = advance(start, x0, level, following)
    if len(seen) == 1:
        return straight
    h = log_step(level, following)
    latest, at = seen[-1]
    rise = (latest - x0) * (h / log_step(level, at))
    # x0 at the midpoint, or linear in log s: the integral of exp(u - h) u / h over the step
    weight = -math.expm1(-h) / 2 if len(seen) == 2 else math.expm1(-h) / h + 1
    return straight + following.alpha * weight * rise

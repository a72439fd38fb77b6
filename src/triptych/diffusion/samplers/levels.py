"""The levels of a sampler, also of one that does not simply go down.

Where the next level is noisier, fresh noise leads up to it (`stochastic.renoised`). So samplers
that start a stretch again, or overshoot and come back, are told so by their levels alone, and
callers count steps as always.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from triptych.diffusion.samplers.dpm_solver import fast_orders
from triptych.diffusion.samplers import Level, between
from triptych.diffusion.schedule import Discrete, Edm, Schedule
from triptych.diffusion.spacing import Spacing, karras, levels

GAMMA = 0.3
"""Of TCD, where none is asked for: what its authors and diffusers take."""


def walk(
    schedule: Schedule, sampler: str, steps: int, spacing: Spacing, *, eta: float | None = None
) -> list[Level]:
    """The levels that a sampler walks in so many steps.

    `eta` changes where TCD goes (its gamma), and the levels of no other.

    Raises:
        ValueError: the schedule has no such spacing, or not so many steps; it does not reach as far
            as Restart goes back, or has no time for TCD.
    """
    if sampler == "restart":
        return restarting(schedule, steps, spacing, restart_of(steps))
    if sampler == "dpm_fast":
        return grouped(schedule, steps, spacing)
    if sampler == "dpm_adaptive":  # only where it begins and ends matters
        return levels(schedule, steps, to_least(spacing))
    if sampler == "tcd":
        return overshooting(schedule, steps, spacing, GAMMA if eta is None else eta)
    return levels(schedule, steps, spacing)


class Restart(NamedTuple):
    """Up from s = low to s = high and down again in so many steps, so many times."""

    steps: int
    times: int
    low: float = 0.1
    high: float = 2.0


def restart_of(steps: int) -> Restart | None:
    """What AUTOMATIC1111 does in so many steps, those of the restarts counted: nothing below 20,
    then one restart of 9 steps, from 36 on two of a quarter of the steps.
    """
    if steps < 20:
        return None
    return Restart(9, 1) if steps < 36 else Restart(steps // 4, 2)


def restarting(
    schedule: Schedule, steps: int, spacing: Spacing, restart: Restart | None
) -> list[Level]:
    """Levels that go up again and down (arXiv:2306.14878, algorithm 1).

    The stretch begins anew where the spacing's own levels are nearest to `low`, and goes down by
    Karras' spacing. `steps` are those downwards.
    """
    if restart is None:
        return levels(schedule, steps, spacing)
    walked = levels(schedule, steps - restart.steps * restart.times, spacing)
    inner = range(1, len(walked) - 1)
    turn = min(inner, key=lambda i: abs(walked[i].ratio - restart.low), default=0)
    low = walked[turn].ratio
    if not low < restart.high < walked[0].ratio:
        raise ValueError(
            f"restart goes back from about s = {restart.low:g} to {restart.high:g}, but these "
            f"levels turn at {low:.3g} and begin at {walked[0].ratio:.3g}: use heun"
        )
    ratios = karras(restart.high, low, restart.steps + 1)[:-1]
    stretch = [_told(schedule, ratio, spacing) for ratio in ratios]
    again = [*stretch, walked[turn]] * restart.times
    return [*walked[: turn + 1], *again, *walked[turn + 1 :]]


def overshooting(schedule: Schedule, steps: int, spacing: Spacing, gamma: float) -> list[Level]:
    """Each step goes on to (1 - gamma) of the next time, from where noise leads back up to it
    (arXiv:2402.19159, algorithm 2: gamma 0 adds no noise, 1 goes to the cleanest level).

    It ends at the cleanest time that the model was trained on, of a flow at the clean picture.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"tcd's eta (its gamma) is a share, 0 to 1, not {gamma}")
    if isinstance(schedule, Edm):
        raise ValueError("an EDM schedule has no time of which tcd could take a share: use lcm")
    if isinstance(schedule, Discrete):
        spacing = to_least(spacing)
    walked = levels(schedule, steps, spacing)
    found = walked[:1]
    for level in walked[1:-1]:
        time = max((1 - gamma) * (level.time or 0.0), schedule.cleanest)
        further = schedule.at(float(math.floor(time)) if spacing.whole_times else time)
        found += [further, level] if further.ratio < level.ratio else [level]
    return [*found, walked[-1]]


def grouped(schedule: Schedule, steps: int, spacing: Spacing) -> list[Level]:
    """The spacing spreads the steps of DPM-Solver-fast, as many as its orders; between their ends
    lie the levels where it looks. With exponential spacing all are k-diffusion's.
    """
    begins = schedule.at(schedule.noisiest).alpha == 0
    orders = [1, *fast_orders(steps - 1)] if begins else fast_orders(steps)
    ends = levels(schedule, len(orders), to_least(spacing))
    found = ends[:1]
    for order, (level, following) in zip(orders, pairwise(ends), strict=True):
        for part in range(1, order):
            found.append(_told(schedule, between(level, following, part / order).ratio, spacing))
        found.append(following)
    return found


def to_least(spacing: Spacing) -> Spacing:
    """The same way, ended at the least noise that the model was trained on."""
    return replace(spacing, include_cleanest=False, end="least")


def _told(schedule: Schedule, ratio: float, spacing: Spacing) -> Level:
    """The level of a ratio, with a whole time where the network is told such."""
    level = schedule.of_ratio(ratio)
    if not spacing.whole_times or level.time is None:
        return level
    return level._replace(time=float(round(level.time)))


def upwards(level: Level, following: Level) -> bool:
    """Whether noise leads from a level to the next."""
    return following.ratio > level.ratio


def downward_steps(walked: Sequence[Level]) -> list[int]:
    """Where in a walk a step towards the picture begins."""
    return [i for i, pair in enumerate(pairwise(walked)) if not upwards(*pair)]

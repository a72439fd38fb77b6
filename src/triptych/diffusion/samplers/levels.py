"""The levels of a sampler, including those whose noise goes up again in between.

Where the next level is noisier, fresh noise is added (`stochastic.renoise`). So the levels alone
tell Restart where to repeat, and TCD how far to overshoot; callers count steps as usual.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from triptych.diffusion.samplers.dpm_solver import fast_orders
from triptych.diffusion.schedule import Discrete, Edm, Schedule
from triptych.diffusion.spacing import Spacing, karras, levels
from triptych.diffusion.steps import Level, between

GAMMA = 0.3
"""TCD's default, as in the paper's code and in diffusers."""


def sampler_levels(
    schedule: Schedule, sampler: str, steps: int, spacing: Spacing, *, eta: float | None = None
) -> list[Level]:
    """The levels of a sampler for a number of steps.

    `eta` is TCD's gamma; other samplers' levels do not depend on it.

    Raises:
        ValueError: the schedule does not support the spacing or this many steps; it starts below
            the noise that Restart returns to; or it has no timesteps, which TCD needs.
    """
    if sampler == "restart":
        return restart_levels(schedule, steps, spacing, choose_restart(steps))
    if sampler == "dpm_fast":
        return dpm_fast_levels(schedule, steps, spacing)
    if sampler == "dpm_adaptive":  # which uses the first and the last only
        return levels(schedule, steps, end_at_least_noise(spacing))
    if sampler == "tcd":
        return tcd_levels(schedule, steps, spacing, GAMMA if eta is None else eta)
    return levels(schedule, steps, spacing)


class Restart(NamedTuple):
    """Up from s = low to s = high and down again: `times` times, in `steps` steps each."""

    steps: int
    times: int
    low: float = 0.1
    high: float = 2.0


def choose_restart(steps: int) -> Restart | None:
    """AUTOMATIC1111's rule, `steps` including the restarts: none below 20 steps, one of 9 steps
    from 20, two of a quarter of the steps from 36.
    """
    if steps < 20:
        return None
    return Restart(9, 1) if steps < 36 else Restart(steps // 4, 2)


def restart_levels(
    schedule: Schedule, steps: int, spacing: Spacing, restart: Restart | None
) -> list[Level]:
    """Levels that go up again and down (arXiv:2306.14878, algorithm 1).

    Each restart begins at the spacing's level nearest to `low`, and goes down by Karras' spacing.
    `steps` counts the steps downwards.
    """
    if restart is None:
        return levels(schedule, steps, spacing)
    path = levels(schedule, steps - restart.steps * restart.times, spacing)
    inner = range(1, len(path) - 1)
    turn = min(inner, key=lambda i: abs(path[i].ratio - restart.low), default=0)
    low = path[turn].ratio
    if not low < restart.high < path[0].ratio:
        raise ValueError(
            f"restart goes from about s = {restart.low:g} back to {restart.high:g}, but the "
            f"nearest level is {low:.3g} and the first {path[0].ratio:.3g}: use heun"
        )
    ratios = karras(restart.high, low, restart.steps + 1)[:-1]
    stretch = [_level_at(schedule, ratio, spacing) for ratio in ratios]
    again = [*stretch, path[turn]] * restart.times
    return [*path[: turn + 1], *again, *path[turn + 1 :]]


def tcd_levels(schedule: Schedule, steps: int, spacing: Spacing, gamma: float) -> list[Level]:
    """Each step overshoots to (1 - gamma) of the next time, and noise leads back up to that time
    (arXiv:2402.19159, algorithm 2; gamma 0 adds no noise, 1 goes to the cleanest level).

    Ends at the cleanest time that the model was trained on; of a flow, at the clean picture.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"tcd's eta (its gamma) is a share, 0 to 1, not {gamma}")
    if isinstance(schedule, Edm):
        raise ValueError("tcd needs timesteps, which an EDM schedule does not have: use lcm")
    if isinstance(schedule, Discrete):
        spacing = end_at_least_noise(spacing)
    path = levels(schedule, steps, spacing)
    chosen = path[:1]
    for level in path[1:-1]:
        time = max((1 - gamma) * (level.time or 0.0), schedule.cleanest)
        further = schedule.at(float(math.floor(time)) if spacing.whole_times else time)
        chosen += [further, level] if further.ratio < level.ratio else [level]
    return [*chosen, path[-1]]


def dpm_fast_levels(schedule: Schedule, steps: int, spacing: Spacing) -> list[Level]:
    """The spacing gives the ends of DPM-Solver-fast's steps; the levels between them are the
    intermediate evaluations, even in log s. With exponential spacing they equal k-diffusion's.
    """
    begins = schedule.at(schedule.noisiest).alpha == 0
    orders = [1, *fast_orders(steps - 1)] if begins else fast_orders(steps)
    ends = levels(schedule, len(orders), end_at_least_noise(spacing))
    every = ends[:1]
    for order, (level, following) in zip(orders, pairwise(ends), strict=True):
        for part in range(1, order):
            every.append(
                _level_at(schedule, between(level, following, part / order).ratio, spacing)
            )
        every.append(following)
    return every


def end_at_least_noise(spacing: Spacing) -> Spacing:
    """The same spacing, ending at the least noise that the model was trained on."""
    return replace(spacing, include_cleanest=False, end="least")


def _level_at(schedule: Schedule, ratio: float, spacing: Spacing) -> Level:
    """The level of a ratio; its time is rounded where the network takes whole timesteps."""
    level = schedule.of_ratio(ratio)
    if not spacing.whole_times or level.time is None:
        return level
    return level._replace(time=float(round(level.time)))


def is_upward(level: Level, following: Level) -> bool:
    """Whether the next level is noisier."""
    return following.ratio > level.ratio


def downward_steps(levels: Sequence[Level]) -> list[int]:
    """The indices of the levels from which a step goes towards the picture."""
    return [i for i, pair in enumerate(pairwise(levels)) if not is_upward(*pair)]

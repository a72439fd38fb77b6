"""Start, levels and end of a sampler as diffusers and AUTOMATIC1111 choose them.

A sampler's name is the algorithm alone; the rest is the model's scheduler configuration, which each
family of schedulers reads differently. Following them, the same settings give the same picture.
"""

import math
from typing import Literal

from triptych.diffusion.names import SAMPLERS, Automatic1111, find_sampler
from triptych.diffusion.samplers.levels import sampler_levels
from triptych.diffusion.schedule import Discrete, Schedule
from triptych.diffusion.spacing import (
    AYS_SD,
    AYS_SDXL,
    RATIOS,
    Kind,
    Spacing,
    align_your_steps_ratios,
    levels,
    spaced_times,
    start_scale,
)
from triptych.diffusion.steps import Level


def diffusers_levels(
    schedule: Schedule,
    sampler: str,
    steps: int,
    kind: Kind,
    *,
    offset: int = 0,
    end: Literal["clean", "least"] = "clean",
) -> tuple[list[Level], float]:
    """The levels of a sampler, and the factor of standard normal noise at the first level.

    `offset` and `end` are steps_offset and set_alpha_to_one of a scheduler's configuration; only
    tables of betas use them.

    Raises:
        ValueError: the schedule does not support the spacing or this many steps.
    """
    if not isinstance(schedule, Discrete):
        chosen = sampler_levels(schedule, sampler, steps, Spacing(kind))
        return chosen, start_scale(chosen, "sigma")
    record = find_sampler(sampler)
    if record.diffusers == "betas":
        # without an offset the last timestep is 0, and the table's first entry adds no step
        least = end == "least" and (kind == "leading" and offset > 0)
        spacing = Spacing(kind, offset, True, end="least" if least else "clean")
        return sampler_levels(schedule, sampler, steps, spacing), 1.0
    if record.diffusers == "solver":
        last: Literal["clean", "least"] = "least" if record.ends_at_least_noise else "clean"
        # spacings over sigma include the cleanest level, which the clean picture then follows
        cleanest = kind in RATIOS and last == "clean"
        spacing = Spacing(kind, offset, True, include_cleanest=cleanest, end=last)
        return levels(schedule, steps, spacing), 1.0
    chosen = sampler_levels(schedule, sampler, steps, Spacing(kind, offset))
    return chosen, start_scale(chosen, "one" if kind == "leading" else "sigma")


def automatic1111(sampler: str) -> Automatic1111:
    """How AUTOMATIC1111 uses a sampler.

    Raises:
        ValueError: it has no such sampler.
    """
    conventions = find_sampler(sampler).automatic1111
    if conventions is None:
        names = [name for name, record in SAMPLERS.items() if record.automatic1111]
        raise ValueError(
            f"AUTOMATIC1111 has no sampler {sampler}, so its conventions do not apply; it has "
            f"{', '.join(names)}"
        )
    return conventions


def automatic1111_levels(
    schedule: Schedule, sampler: str, steps: int, kind: Kind, *, xl: bool = False
) -> tuple[list[Level], float]:
    """As `diffusers_levels`, by AUTOMATIC1111's conventions.

    Samplers of k-diffusion use sigmas that include the model's least one and end at 0, and start
    from noise times the first; between timesteps sigmas are interpolated in their logarithm. DDIM,
    PLMS and UniPC use the timesteps 1, 1 + T // steps, ... below T, start from unscaled noise and
    end at the least noise of the table. `xl` chooses SDXL's table of Align Your Steps.

    Raises:
        ValueError: a schedule that is not a table of betas, a sampler or spacing that AUTOMATIC1111
            does not have, or too many steps.
    """
    theirs = automatic1111(sampler)
    if not isinstance(schedule, Discrete) or math.isinf(schedule.ratios[-1]):
        raise ValueError(
            "AUTOMATIC1111's conventions need a schedule of betas that does not end in pure noise: "
            "use those of diffusers"
        )
    if theirs.fixed and kind != theirs.spacing:
        raise ValueError(
            f"in AUTOMATIC1111 {sampler} has one spacing, {theirs.spacing}, not {kind}"
        )
    if kind == "leading" and theirs.fixed:
        return _timestep_levels(schedule, steps), 1.0
    if kind in ("leading", "trailing", "lcm"):
        raise ValueError(f"AUTOMATIC1111 has no schedule type {kind} for {sampler}")
    chosen = _sigma_levels(schedule, sampler, steps, kind, xl)
    return chosen, start_scale(chosen, "sigma")


def _timestep_levels(schedule: Discrete, steps: int) -> list[Level]:
    count = len(schedule.betas)
    if steps > count:
        raise ValueError(f"{steps} steps of a schedule of {count} training times")
    times = [min(time + 1, count - 1) for time in range(0, count, count // steps)]
    chosen = [schedule.at(float(time)) for time in reversed(times)]
    if len({level.ratio for level in chosen}) < len(chosen):
        raise ValueError(f"{steps} steps repeat a level of {count} training times: take fewer")
    return [*chosen, schedule.at(0.0)]


def _sigma_levels(
    schedule: Discrete, sampler: str, steps: int, kind: Kind, xl: bool
) -> list[Level]:
    end = Level(1.0, 0.0, 0.0)
    keeps_least = not automatic1111(sampler).discards_sigma_min
    points = steps if keeps_least else steps + 1
    if kind in ("align_your_steps", "align_your_steps_sdxl"):
        table = AYS_SDXL if xl or kind == "align_your_steps_sdxl" else AYS_SD
        ratios = align_your_steps_ratios(table, points - 1)
        return [*[schedule.of_ratio(ratio) for ratio in ratios][:steps], end]
    if kind in ("linspace", "sgm_uniform"):
        times = spaced_times(schedule, points, Spacing(kind))[:steps]
        return [*[schedule.of_ratio(_interpolate_ratio(schedule, time)) for time in times], end]
    over_sigma: Kind = "beta_sigma" if kind == "beta" else kind
    return sampler_levels(
        schedule, sampler, steps, Spacing(over_sigma, include_cleanest=keeps_least)
    )


def _interpolate_ratio(schedule: Discrete, time: float) -> float:
    """sigma / alpha at a fractional time, linear in the logarithm as in k-diffusion."""
    low = min(int(time), len(schedule.ratios) - 2)
    start, end = (math.log(ratio) for ratio in schedule.ratios[low : low + 2])
    return math.exp(start + (time - low) * (end - start))

"""Where a sampler of diffusers or AUTOMATIC1111 starts, what it walks and where it ends.

A sampler's name is the algorithm alone; the rest is the scheduler configuration of the model, but
each family of schedulers reads it in its own way. These are their readings, so that the same
settings give the same picture.
"""

import math
from typing import Literal

from triptych.diffusion.names import SAMPLERS, Automatic1111, find_sampler
from triptych.diffusion.samplers import Level
from triptych.diffusion.schedule import Discrete, Schedule
from triptych.diffusion.spacing import (
    AYS_SD,
    AYS_SDXL,
    RATIOS,
    Kind,
    Spacing,
    aligned,
    levels,
    start_scale,
    times_of,
)
from triptych.diffusion.samplers.levels import walk


def diffusers_walk(
    schedule: Schedule,
    sampler: str,
    steps: int,
    kind: Kind,
    *,
    offset: int = 0,
    end: Literal["clean", "least"] = "clean",
) -> tuple[list[Level], float]:
    """The levels of a sampler, and what standard normal noise is multiplied with at the first.

    `offset` and `end` are steps_offset and set_alpha_to_one of a scheduler's configuration. Both
    mean something to a table of betas only.

    Raises:
        ValueError: the schedule has no such spacing, or not so many steps.
    """
    if not isinstance(schedule, Discrete):
        walked = walk(schedule, sampler, steps, Spacing(kind))
        return walked, start_scale(walked, "sigma")
    record = find_sampler(sampler)
    if record.diffusers == "betas":
        # where the walk reaches time 0 by itself, its first entry is no further step
        least = end == "least" and (kind == "leading" and offset > 0)
        spacing = Spacing(kind, offset, True, end="least" if least else "clean")
        return walk(schedule, sampler, steps, spacing), 1.0
    if record.diffusers == "solver":
        last: Literal["clean", "least"] = "least" if record.ends_at_least_noise else "clean"
        # spread over sigma, the cleanest level is one of theirs and the picture follows it
        cleanest = kind in RATIOS and last == "clean"
        spacing = Spacing(kind, offset, True, include_cleanest=cleanest, end=last)
        return levels(schedule, steps, spacing), 1.0
    walked = walk(schedule, sampler, steps, Spacing(kind, offset))
    return walked, start_scale(walked, "one" if kind == "leading" else "sigma")


def automatic1111(sampler: str) -> Automatic1111:
    """How AUTOMATIC1111 uses a sampler.

    Raises:
        ValueError: it has no such sampler.
    """
    found = find_sampler(sampler).automatic1111
    if found is None:
        names = [name for name, record in SAMPLERS.items() if record.automatic1111]
        raise ValueError(
            f"AUTOMATIC1111 has no sampler {sampler}; it has {', '.join(names)}. Its "
            "conventions mean nothing to another"
        )
    return found


def automatic1111_walk(
    schedule: Schedule, sampler: str, steps: int, kind: Kind, *, xl: bool = False
) -> tuple[list[Level], float]:
    """As `diffusers_walk`, by AUTOMATIC1111's conventions.

    Samplers of k-diffusion walk sigmas that include the least one of the model and end at 0, from
    noise times the first; between whole times sigmas are interpolated in their logarithm. DDIM,
    PLMS and UniPC walk whole times in strides of T // steps from 1, as many as there are below T,
    from noise as it is, and end at the least noise of the table. `xl` chooses the table of Align
    Your Steps.

    Raises:
        ValueError: a schedule that is no table of betas, a sampler or spacing that the program
            lacks, or too many steps.
    """
    theirs = automatic1111(sampler)
    if not isinstance(schedule, Discrete) or math.isinf(schedule.ratios[-1]):
        raise ValueError(
            "AUTOMATIC1111's conventions are for models whose schedule is a table of betas that "
            "ends short of pure noise: use those of diffusers"
        )
    if theirs.fixed and kind != theirs.spacing:
        raise ValueError(
            f"in AUTOMATIC1111 {sampler} has one spacing, {theirs.spacing}, not {kind}"
        )
    if kind == "leading" and theirs.fixed:
        return _strides(schedule, steps), 1.0
    if kind in ("leading", "trailing", "lcm"):
        raise ValueError(f"AUTOMATIC1111 has no schedule type {kind} for {sampler}")
    walked = _sigmas(schedule, sampler, steps, kind, xl)
    return walked, start_scale(walked, "sigma")


def _strides(schedule: Discrete, steps: int) -> list[Level]:
    count = len(schedule.betas)
    if steps > count:
        raise ValueError(f"{steps} steps of a schedule of {count} training times")
    times = [min(time + 1, count - 1) for time in range(0, count, count // steps)]
    walked = [schedule.at(float(time)) for time in reversed(times)]
    if len({level.ratio for level in walked}) < len(walked):
        raise ValueError(f"{steps} steps repeat a level of {count} training times: take fewer")
    return [*walked, schedule.at(0.0)]


def _sigmas(schedule: Discrete, sampler: str, steps: int, kind: Kind, xl: bool) -> list[Level]:
    end = Level(1.0, 0.0, 0.0)
    whole = not automatic1111(sampler).discards_sigma_min
    points = steps if whole else steps + 1
    if kind in ("align_your_steps", "align_your_steps_sdxl"):
        table = AYS_SDXL if xl or kind == "align_your_steps_sdxl" else AYS_SD
        ratios = aligned(table, points - 1)
        return [*[schedule.of_ratio(ratio) for ratio in ratios][:steps], end]
    if kind in ("linspace", "sgm_uniform"):
        times = times_of(schedule, points, Spacing(kind))[:steps]
        return [*[schedule.of_ratio(_between(schedule, time)) for time in times], end]
    over: Kind = "beta_sigma" if kind == "beta" else kind
    return walk(schedule, sampler, steps, Spacing(over, include_cleanest=whole))


def _between(schedule: Discrete, time: float) -> float:
    """sigma / alpha of a time between two, in the logarithm, as k-diffusion reads its table."""
    low = min(int(time), len(schedule.ratios) - 2)
    start, end = (math.log(ratio) for ratio in schedule.ratios[low : low + 2])
    return math.exp(start + (time - low) * (end - start))

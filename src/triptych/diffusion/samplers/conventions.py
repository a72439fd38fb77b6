"""Start, levels and end of a sampler as diffusers and AUTOMATIC1111 choose them.

A sampler's name is the algorithm alone; the rest is the model's scheduler configuration, which each
family of schedulers reads differently. Following them, the same settings give the same picture.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

from triptych.diffusion.names import SAMPLERS, Automatic1111, find_sampler
from triptych.diffusion.samplers.levels import sampler_levels
from triptych.diffusion.schedule import TIMES, Discrete, Flow, Schedule, shift_time
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

SMALLEST_SIGNAL = 2.0**-24
"""alpha^2 of pure noise for the schedulers of diffusers that compute with sigma / alpha."""
FLOW_SIGMAS = ("karras", "exponential", "beta_sigma")
CUT = ("exponential", "beta_sigma")
"""Spacings whose times diffusers' solvers cut to whole numbers; of the others they round."""


@dataclass(frozen=True)
class Spread:
    """How a scheduler configuration of diffusers spreads levels and ends them."""

    kind: Kind
    offset: int = 0
    """steps_offset; only tables of betas use it."""
    between: Literal["", "leading", "trailing"] = ""
    """timestep_spacing where `kind` is over sigma: samplers of k-diffusion stay between its first
    and its last level. Empty is linspace: the whole schedule.
    """
    end: Literal["clean", "least"] = "clean"
    """set_alpha_to_one, of DDIM and PNDM."""
    final: Literal["clean", "least"] = "clean"
    """final_sigmas_type, of Euler, DPM-Solver and UniPC."""


def diffusers_levels(
    schedule: Schedule, sampler: str, steps: int, spread: Spread
) -> tuple[list[Level], float]:
    """The levels of a sampler, and the factor of standard normal noise at the first level.

    Where a spacing already ends at the least noise and the sampler is to end there, the last step
    has no length, as in diffusers: it calls the network and leaves x as it is.

    Raises:
        ValueError: the schedule does not support the spacing or this many steps.
    """
    record, kind = find_sampler(sampler), spread.kind
    if isinstance(schedule, Flow) and any(name.startswith("FlowMatch") for name in record.aliases):
        chosen = _flow_levels(schedule, steps, kind)
        return chosen, start_scale(chosen, "sigma")
    if not isinstance(schedule, Discrete):
        chosen = sampler_levels(schedule, sampler, steps, Spacing(kind), eta=0.0)
        return chosen, start_scale(chosen, "sigma")
    rounds = record.diffusers == "sigmas" and kind == "karras" and sampler.startswith("dpm2")
    whole = rounds or (record.diffusers != "sigmas" and kind not in CUT)
    spacing = Spacing(kind, spread.offset, whole)
    if record.diffusers == "betas":
        # a pipeline of Stable Diffusion gives every step the eta 0
        chosen = sampler_levels(schedule, sampler, steps, spacing, eta=0.0)
        least = "end" in record.reads and spread.end == "least"
        return (_end_at_least(chosen, schedule) if least else chosen), 1.0
    schedule = _without_pure_noise(schedule)
    least = record.ends_at_least_noise or ("final" in record.reads and spread.final == "least")
    if record.diffusers == "solver":
        # a spacing over sigma includes the cleanest level, one over times leaves it to the end
        chosen = levels(schedule, steps, replace(spacing, include_cleanest=kind in RATIOS))
        if kind in CUT:
            chosen = [level._replace(time=float(int(level.time or 0.0))) for level in chosen]
        return (_end_at_least(chosen, schedule) if least else chosen), 1.0
    chosen = sampler_levels(schedule, sampler, steps, spacing)
    if kind in RATIOS and spread.between:
        chosen = _narrowed_levels(schedule, steps, spacing, spread.between)
    leads = "leading" in (kind, spread.between)
    scale = start_scale(chosen, "one" if leads else "sigma")
    return (_end_at_least(chosen, schedule) if least else chosen), scale


def diffusers_spacing(schedule: Schedule, sampler: str, kind: Kind) -> Kind:
    """The spacing that a sampler's class in diffusers has where a model's configuration says
    `kind`: some have one of their own.
    """
    own = find_sampler(sampler).own_spacing
    if not own or not isinstance(schedule, Discrete) or (kind in RATIOS and own != "lcm"):
        return kind
    return cast(Kind, own)


def _end_at_least(chosen: list[Level], schedule: Discrete) -> list[Level]:
    return [*chosen[:-1], schedule.at(schedule.cleanest)]


def _without_pure_noise(schedule: Discrete) -> Discrete:
    """The same table, with a little signal left at its end if the time before has more."""
    last = 1 - SMALLEST_SIGNAL / float(schedule.signal[-2])
    if math.isfinite(schedule.ratios[-1]) or last <= 0:
        return schedule
    return Discrete((*schedule.betas[:-1], last))


def _narrowed_levels(
    schedule: Discrete, steps: int, spacing: Spacing, between: Kind
) -> list[Level]:
    """A spacing over sigma between the first and the last level of a spacing over times."""
    times = spaced_times(schedule, steps, replace(spacing, kind=between))
    ends = schedule.at(times[0]).ratio, schedule.at(times[-1]).ratio
    ratios = RATIOS[spacing.kind](*ends, steps, spacing)
    chosen = [schedule.of_ratio(ratio) for ratio in ratios]
    if spacing.whole_times:
        chosen = [level._replace(time=float(round(level.time or 0.0))) for level in chosen]
    return [*chosen, Level(1.0, 0.0, 0.0)]


def _flow_levels(schedule: Flow, steps: int, kind: Kind) -> list[Level]:
    """The levels of diffusers' flow schedulers: `linspace` shifts the least time twice, once as the
    end of the line and again with all times; spacings over sigma are over t, between its ends.
    """
    least = shift_time(schedule.least, schedule.shift)
    if kind not in ("linspace", *FLOW_SIGMAS):
        return levels(schedule, steps, Spacing(kind))
    walked = levels(replace(schedule, least=least), steps, Spacing("linspace"))
    if kind == "linspace":
        return walked
    times = RATIOS[kind](1.0, walked[-2].sigma, steps, Spacing(kind))
    return [*(schedule.at(TIMES * t) for t in times), walked[-1]]


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
    if kind in ("leading", "trailing", "lcm", "lu"):
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
    if kind == "ddim_uniform":  # every stride from 1 on, which may be a step more
        stride = max(len(schedule.betas) // points, 1)
        times = [float(time) for time in range(1, len(schedule.betas), stride)]
        chosen = [schedule.at(time) for time in reversed(times)]
        return [*(chosen if keeps_least else chosen[:-1]), end]
    if kind == "kl_optimal":  # ends at the least sigma, not at 0
        ends = schedule.ratios[-1], schedule.ratios[0]
        ratios = RATIOS[kind](*ends, points + 1, Spacing(kind))
        return [schedule.of_ratio(ratio) for ratio in (*ratios[:steps], ratios[-1])]
    if kind in ("linspace", "sgm_uniform", "simple", "turbo"):
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

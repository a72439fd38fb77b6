"""How the levels of a schedule are spread over the steps, noisiest first.

Steps are spread either over the training timesteps or over sigma / alpha. The choice belongs to the
model's configuration, as its betas do, and not to the sampler.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from triptych.diffusion.schedule import TIMES, Edm, Flow, Schedule, shift_time
from triptych.diffusion.steps import Level

Kind = Literal[
    "linspace", "leading", "trailing", "sgm_uniform", "lcm", "beta", "simple", "ddim_uniform",
    "turbo", "karras", "exponential", "lu", "polyexponential", "beta_sigma", "kl_optimal",
    "align_your_steps", "align_your_steps_sdxl",
]  # fmt: skip


@dataclass(frozen=True)
class Spacing:
    """How steps are spread, and where they end."""

    kind: Kind = "trailing"
    """Over times: `linspace` from the last to the first, `leading` and `trailing` every T /
    steps from the first or from the last (arXiv:2305.08891, table 2), `sgm_uniform`, `lcm`,
    `beta`, and AUTOMATIC1111's `simple`, `ddim_uniform`, `turbo`. Over sigma / alpha: `karras`,
    `exponential`, which is also Lu's (`lu`), `polyexponential`, `beta_sigma`, `kl_optimal`, and the
    tables of Align Your Steps for SD 1.x and SDXL.
    """
    offset: int = 0
    """Added to the times of `leading`."""
    whole_times: bool = False
    """Round times to whole timesteps, on which models with a table of betas are trained."""
    include_cleanest: bool = True
    """Evaluate the network at the cleanest level too; otherwise the end replaces it. The kinds in
    `OPEN` never reach it.
    """
    end: Literal["clean", "least"] = "clean"
    """End at sigma 0, or at the least noise that the model was trained on."""
    rho: float | None = None
    """The power of `karras` (7 by default) and of `polyexponential` (1)."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"no spacing {self.kind!r}; there are {', '.join(get_args(Kind))}")
        if self.rho is not None and self.rho <= 0:
            raise ValueError(f"rho must be positive, not {self.rho}")


OPEN = (
    "trailing", "sgm_uniform", "lcm", "simple", "ddim_uniform", "turbo", "align_your_steps",
    "align_your_steps_sdxl",
)  # fmt: skip


def levels(schedule: Schedule, steps: int, spacing: Spacing) -> list[Level]:
    """`steps` levels at which the network is evaluated, and the level to end at.

    Raises:
        ValueError: the schedule does not support the spacing or this many steps.
    """
    if steps < 1:
        raise ValueError(f"sampling takes at least one step, not {steps}")
    chosen = _spaced_levels(schedule, steps, spacing)
    if len({level.ratio for level in chosen}) < len(chosen):
        raise ValueError(f"{steps} steps of {spacing.kind} repeat a level: take fewer steps")
    least = schedule.at(schedule.cleanest)
    end = Level(1.0, 0.0, schedule.cleanest) if spacing.end == "clean" else least
    if chosen[-1].ratio <= end.ratio * (1 + 1e-9):
        raise ValueError(
            f"{spacing.kind} already ends at the least noise: with end='least' give "
            "include_cleanest=False"
        )
    return [*chosen, end]


def _spaced_levels(schedule: Schedule, steps: int, spacing: Spacing) -> list[Level]:
    open_ended = spacing.include_cleanest or spacing.kind in OPEN
    points = steps if open_ended else steps + 1
    if spacing.kind not in RATIOS:
        times = spaced_times(schedule, points, spacing)[:steps]
        return [schedule.at(float(round(t)) if spacing.whole_times else t) for t in times]
    start = schedule.at(schedule.noisiest)
    finite = start if start.alpha else schedule.at(schedule.noisiest - 1)
    ends = finite.ratio, schedule.at(schedule.cleanest).ratio
    chosen = [schedule.of_ratio(r) for r in RATIOS[spacing.kind](*ends, points, spacing)][:steps]
    if start.alpha == 0:
        chosen[0] = start
    if spacing.whole_times:
        return [level._replace(time=float(round(level.time or 0.0))) for level in chosen]
    return chosen


def spaced_times(schedule: Schedule, points: int, spacing: Spacing) -> list[float]:
    """`points` times of a spacing over times, noisiest first.

    Raises:
        ValueError: the schedule does not support the spacing or this many times.
    """
    first, last = schedule.cleanest, schedule.noisiest
    if isinstance(schedule, Edm):
        raise ValueError(
            f"an EDM schedule has no {spacing.kind} spacing: use karras or exponential"
        )
    if isinstance(schedule, Flow):
        return _flow_times(schedule, points, spacing)
    count = int(last) + 1
    if points > count:
        raise ValueError(f"{points} steps of a schedule of {count} training times")
    if spacing.kind == "linspace":
        return _linspace(last, first, points)
    if spacing.kind == "leading":
        stride = count // points
        return [float((points - 1 - i) * stride + spacing.offset) for i in range(points)]
    if spacing.kind == "trailing":
        return [float(round(count - i * count / points) - 1) for i in range(points)]
    if spacing.kind == "simple":  # the same, rounded down from the last time
        return [last - int(i * count / points) for i in range(points)]
    if spacing.kind == "ddim_uniform":  # `leading` with an offset of 1
        return [min((points - 1 - i) * (count // points) + 1.0, last) for i in range(points)]
    if spacing.kind == "turbo":  # `trailing`, rounded after 1 is subtracted
        return [min(float(round(i * count / points - 1)), last) for i in range(points, 0, -1)]
    if spacing.kind == "sgm_uniform":  # the end replaces the cleanest time
        return _linspace(last, first, points + 1)[:-1]
    if spacing.kind == "beta":
        return [first + (last - first) * q for q in _beta_quantiles(points)]
    trained = range(count - 1, -1, -(count // min(50, count)))  # of the distillation
    if points > len(trained):
        raise ValueError(f"lcm has {len(trained)} steps at most, not {points}")
    return [float(trained[i * len(trained) // points]) for i in range(points)]


def _flow_times(schedule: Flow, points: int, spacing: Spacing) -> list[float]:
    if spacing.kind == "linspace":
        unshifted = _linspace(1.0, schedule.least, points)
    elif spacing.kind in ("trailing", "sgm_uniform"):
        unshifted = [1 - i / points for i in range(points)]
    elif spacing.kind == "beta":
        unshifted = [schedule.least + (1 - schedule.least) * q for q in _beta_quantiles(points)]
    else:
        raise ValueError(
            f"a flow schedule has no {spacing.kind} spacing: use trailing, linspace or beta"
        )
    return [TIMES * shift_time(t, schedule.shift) for t in unshifted]


def _linspace(start: float, end: float, points: int) -> list[float]:
    if points == 1:
        return [start]
    return [start + (end - start) * i / (points - 1) for i in range(points)]


def karras(high: float, low: float, points: int, rho: float = 7.0) -> list[float]:
    """s from high to low, even in its rho-th root (arXiv:2206.00364, equation 5)."""
    ends = high ** (1 / rho), low ** (1 / rho)
    return [root**rho for root in _linspace(*ends, points)]


def _exponential(high: float, low: float, points: int, spacing: Spacing) -> list[float]:
    return [math.exp(v) for v in _linspace(math.log(high), math.log(low), points)]


def _polyexponential(high: float, low: float, points: int, spacing: Spacing) -> list[float]:
    """A polynomial in log s, of power rho; 1 is `exponential` (k-diffusion)."""
    span = math.log(high) - math.log(low)
    rho = spacing.rho or 1.0
    return [math.exp(math.log(low) + span * r**rho) for r in _linspace(1.0, 0.0, points)]


def _kl_optimal(high: float, low: float, points: int, spacing: Spacing) -> list[float]:
    """Even in the angle whose tangent is s: optimal for one Gaussian (arXiv:2404.14507, 3.1)."""
    return [math.tan(angle) for angle in _linspace(math.atan(high), math.atan(low), points)]


def _beta_sigma(high: float, low: float, points: int, spacing: Spacing) -> list[float]:
    return [low + (high - low) * q for q in _beta_quantiles(points)]


def _beta_quantiles(points: int) -> list[float]:
    """Quantiles of Beta(0.6, 0.6), from 1 down: more steps at both ends (arXiv:2407.12173).

    With x = u^5 / (u^5 + (1 - u)^5) the density x^-0.4 (1 - x)^-0.4 loses its poles and becomes
    (u (1 - u))^2 (u^5 + (1 - u)^5)^-1.2, which sums accurately; the sum is then inverted.
    """
    cells = 1 << 16
    u = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    mass = (u * (1 - u)).square() * (u**5 + (1 - u) ** 5) ** -1.2
    total = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    total = total / total[-1]
    quantiles = torch.tensor(_linspace(1.0, 0.0, points), dtype=torch.float64)
    index = torch.searchsorted(total, quantiles).clamp(1, cells)
    share = (quantiles - total[index - 1]) / (total[index] - total[index - 1])
    u = (index - 1 + share) / cells
    return [float(q) for q in u**5 / (u**5 + (1 - u) ** 5)]


AYS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""Align Your Steps (arXiv:2404.14507): s of ten steps and their end, for SD 1.x and for SDXL."""


def align_your_steps_ratios(table: Sequence[float], steps: int) -> list[float]:
    """The table, interpolated in the logarithm for another number of steps; its last entry ends the
    last step.
    """
    ratios = []
    for place in _linspace(0.0, len(table) - 1.0, steps + 1):
        low = min(int(place), len(table) - 2)
        before, after = math.log(table[low]), math.log(table[low + 1])
        ratios.append(math.exp(before + (place - low) * (after - before)))
    return ratios


RATIOS = {
    "karras": lambda high, low, points, spacing: karras(high, low, points, spacing.rho or 7.0),
    "exponential": _exponential,
    "lu": _exponential,  # even in lambda (arXiv:2206.00927, section 3.3)
    "kl_optimal": _kl_optimal,
    "polyexponential": _polyexponential,
    "beta_sigma": _beta_sigma,
    # the last entry ends the last step, which `Spacing.end` does here
    "align_your_steps": lambda *settings: align_your_steps_ratios(AYS_SD, settings[2])[:-1],
    "align_your_steps_sdxl": lambda *settings: align_your_steps_ratios(AYS_SDXL, settings[2])[:-1],
}


def start_scale(levels: Sequence[Level], convention: Literal["sigma", "one"]) -> float:
    """The factor of standard normal noise at the first level.

    `sigma` is the level's own; `one` is what DDIM, PNDM and DPM-Solver in diffusers use, even where
    the first level is not quite pure noise.
    """
    return levels[0].sigma if convention == "sigma" else 1.0

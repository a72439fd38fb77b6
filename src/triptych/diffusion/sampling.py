"""Runs a sampler by its name."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from triptych.diffusion.names import SAMPLERS, find_sampler
from triptych.diffusion.noise import BrownianNoise, PictureNoise
from triptych.diffusion.samplers import deterministic, dpm_solver, singlestep, stochastic
from triptych.diffusion.samplers.deterministic import Ending
from triptych.diffusion.steps import Denoiser, Level, Step, by_limited_x0

Limit = Callable[[Tensor], Tensor]
"""x0 to a bounded x0, such as clipping."""


def _functions(module: ModuleType, *names: str) -> dict[str, Callable[..., Iterator[Step]]]:
    return {name: getattr(module, name) for name in names}


EITHER = _functions(dpm_solver, "dpm_fast", "dpm_adaptive")  # stochastic with eta above 0, as DDIM
DETERMINISTIC = (
    EITHER
    | {"ddim": deterministic.euler}
    | _functions(deterministic, "euler", "heun", "dpm2", "lms", "plms", "ipndm")
    | _functions(deterministic, "dpmpp_2m", "unipc", "deis")
    | _functions(singlestep, "dpmpp_2s", "dpmpp_3s")
)
STOCHASTIC = (
    EITHER
    | dict.fromkeys(("ddim", "ddpm", "euler_ancestral"), stochastic.ancestral)
    | _functions(stochastic, "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde")
    | _functions(stochastic, "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "sa_solver")
    | _functions(stochastic, "lcm", "restart", "tcd")
)


def check_draws_batches(name: str) -> None:
    """Raises ValueError for a sampler that draws one picture at a time: the sample grids and scores
    of a run are drawn in batches.
    """
    if not SAMPLERS[name].batched:
        raise ValueError(
            f"--sampler {name} draws one picture at a time, and a run's grids are drawn together: "
            "train with another, such as dpmpp_2m; `generate` takes this one"
        )


def track_progress(
    name: str, steps: Iterator[Step], levels: Sequence[Level]
) -> Iterator[tuple[float, Step]]:
    """The steps of a sampler, each with the share of the work done; 1 with the last.

    Where the number of steps adapts to the picture, the share is that of log sigma / alpha.
    """
    count = len(levels) - 1
    ends = [math.log(level.ratio) for level in levels if level.alpha and level.sigma]
    for number, step in enumerate(steps, start=1):
        if SAMPLERS[name].batched:
            yield number / count, step
        elif step.level == levels[-1]:
            yield 1.0, step
        else:
            done = ends[0] - math.log(step.level.ratio)
            yield min(done / max(ends[0] - ends[-1], 1e-9), 0.999), step


def limited(denoise: Denoiser, limit: Limit | None) -> Denoiser:
    """The denoiser with its x0 bounded, if there is a bound."""
    return (lambda x, level: limit(denoise(x, level))) if limit else denoise


def run_sampler(
    name: str,
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: PictureNoise,
    *,
    eta: float | None = None,
    limit: Limit | None = None,
    ending: Ending | None = None,
) -> Iterator[Step]:
    """The steps of a sampler over the levels; x is a sample at the first level.

    `eta` is how much of the noise of the reverse process is added: without it 1 for a stochastic
    sampler, 0 for DDIM. Of TCD it is the gamma that its levels were made with, and has no effect
    here. DPM++ SDE takes increments of a Brownian path, the others one draw a step. `limit` bounds
    x0 at every step; of DDIM it leaves the predicted noise alone. `ending` is the order of the last
    step of a solver that has such a choice.

    Raises:
        ValueError: an unknown sampler, or one that takes no eta.
    """
    kind = find_sampler(name).noise
    if eta and kind == "none":
        raise ValueError(f"{name} adds no noise: it takes no eta")
    if eta is not None and kind == "fixed":
        raise ValueError(f"{name} adds a fixed amount of noise: it takes no eta")
    options: dict[str, Any] = {}
    if ending and "ending" in find_sampler(name).reads:
        options["ending"] = ending
    if limit and name == "ddim" and not eta:
        return deterministic.solve(denoise, x, levels, step=partial(by_limited_x0, limit=limit))
    denoise = limited(denoise, limit)
    if kind == "none" or (kind == "optional" and not eta):
        return DETERMINISTIC[name](denoise, x, levels, **options)
    draws: Callable[[Level, Level], Tensor] = noise.match(x)
    if name == "dpmpp_sde":
        finite = next(level.ratio for level in levels if level.alpha)
        draws = BrownianNoise([stream.seed for stream in noise.streams], x, finite)
    if eta is not None and kind != "gamma":
        options["eta"] = eta
    return STOCHASTIC[name](denoise, x, levels, draws, **options)

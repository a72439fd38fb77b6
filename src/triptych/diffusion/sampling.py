"""Runs a sampler by its name."""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from triptych.diffusion.names import SAMPLERS, find_sampler
from triptych.diffusion.noise import BrownianNoise, PictureNoise
from triptych.diffusion.samplers import deterministic, dpm_solver, singlestep, stochastic
from triptych.diffusion.steps import Denoiser, Level, Step

DETERMINISTIC: dict[str, Callable[..., Iterator[Step]]] = {
    "ddim": deterministic.euler,
    "euler": deterministic.euler,
    "heun": deterministic.heun,
    "dpm2": deterministic.dpm2,
    "lms": deterministic.lms,
    "plms": deterministic.plms,
    "ipndm": deterministic.ipndm,
    "dpmpp_2s": singlestep.dpmpp_2s,
    "dpmpp_3s": singlestep.dpmpp_3s,
    "dpm_fast": dpm_solver.dpm_fast,
    "dpm_adaptive": dpm_solver.dpm_adaptive,
    "dpmpp_2m": deterministic.dpmpp_2m,
    "unipc": deterministic.unipc,
    "deis": deterministic.deis,
}
STOCHASTIC: dict[str, Callable[..., Iterator[Step]]] = {
    "ddim": stochastic.ancestral,  # with eta above 0, as dpm_fast and dpm_adaptive
    "ddpm": stochastic.ancestral,
    "euler_ancestral": stochastic.ancestral,
    "dpm_fast": dpm_solver.dpm_fast,
    "dpm_adaptive": dpm_solver.dpm_adaptive,
    "dpm2_ancestral": stochastic.dpm2_ancestral,
    "dpmpp_2s_ancestral": stochastic.dpmpp_2s_ancestral,
    "dpmpp_sde": stochastic.dpmpp_sde,
    "dpmpp_2m_sde": stochastic.dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": stochastic.dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": stochastic.dpmpp_3m_sde,
    "sa_solver": stochastic.sa_solver,
    "lcm": stochastic.lcm,
    "restart": stochastic.restart,
    "tcd": stochastic.tcd,
}


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


def run_sampler(
    name: str,
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: PictureNoise,
    *,
    eta: float | None = None,
) -> Iterator[Step]:
    """The steps of a sampler over the levels; x is a sample at the first level.

    `eta` is how much of the noise of the reverse process is added: without it 1 for a stochastic
    sampler, 0 for DDIM. Of TCD it is the gamma that its levels were made with, and has no effect
    here. DPM++ SDE takes increments of a Brownian path, the others one draw a step.

    Raises:
        ValueError: an unknown sampler, or one that takes no eta.
    """
    kind = find_sampler(name).noise
    if eta and kind == "none":
        raise ValueError(f"{name} adds no noise: it takes no eta")
    if eta is not None and kind == "fixed":
        raise ValueError(f"{name} adds a fixed amount of noise: it takes no eta")
    if kind == "none" or (kind == "optional" and not eta):
        return DETERMINISTIC[name](denoise, x, levels)
    draws = noise.match(x)
    if kind in ("fixed", "gamma"):
        return STOCHASTIC[name](denoise, x, levels, draws)
    options = {} if eta is None else {"eta": eta}
    if name == "dpmpp_sde":
        finite = next(level.ratio for level in levels if level.alpha)
        path = BrownianNoise([stream.seed for stream in noise.streams], x, finite)
        return STOCHASTIC[name](denoise, x, levels, path, **options)
    return STOCHASTIC[name](denoise, x, levels, draws, **options)

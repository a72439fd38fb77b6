"""Every sampler by its name, and one walk from noise to a picture."""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from triptych.diffusion import dpm_solver, samplers, singlestep, stochastic
from triptych.diffusion.names import SAMPLERS, find_sampler
from triptych.diffusion.noise import BrownianNoise, PictureNoise
from triptych.diffusion.samplers import Denoiser, Level, Step

DETERMINISTIC: dict[str, Callable[..., Iterator[Step]]] = {
    "ddim": samplers.euler,
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpm2": samplers.dpm2,
    "lms": samplers.lms,
    "plms": samplers.plms,
    "ipndm": samplers.ipndm,
    "dpmpp_2s": singlestep.dpmpp_2s,
    "dpmpp_3s": singlestep.dpmpp_3s,
    "dpm_fast": dpm_solver.dpm_fast,
    "dpm_adaptive": dpm_solver.dpm_adaptive,
    "dpmpp_2m": samplers.dpmpp_2m,
    "unipc": samplers.unipc,
    "deis": samplers.deis,
}
STOCHASTIC: dict[str, Callable[..., Iterator[Step]]] = {
    "ddim": stochastic.ancestral,  # with eta above 0
    "ddpm": stochastic.ancestral,
    "euler_ancestral": stochastic.ancestral,
    "dpm_fast": dpm_solver.dpm_fast,  # with eta above 0, and so
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
    """That a run may have this sampler for its own: its grids and scores are drawn in batches.

    Raises:
        ValueError: it draws one picture at a time.
    """
    if not SAMPLERS[name].batched:
        raise ValueError(
            f"--sampler {name} draws one picture at a time, and a run's grids are drawn together: "
            "train with another, such as dpmpp_2m; `generate` takes this one too"
        )


def shares(
    name: str, steps: Iterator[Step], levels: Sequence[Level]
) -> Iterator[tuple[float, Step]]:
    """The steps of a walk, each with the share of the way that is done; the last has 1."""
    count = len(levels) - 1
    ends = [math.log(level.ratio) for level in levels if level.alpha and level.sigma]
    for number, step in enumerate(steps, start=1):
        if SAMPLERS[name].batched:
            yield number / count, step
        elif step.level == levels[-1]:
            yield 1.0, step
        else:  # nobody knows how many are to come
            done = ends[0] - math.log(step.level.ratio)
            yield min(done / max(ends[0] - ends[-1], 1e-9), 0.999), step


def sample(
    name: str,
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: PictureNoise,
    *,
    eta: float | None = None,
) -> Iterator[Step]:
    """Walk the levels with a sampler by its name; x is at the first level.

    `eta` is how much of the noise of the reverse process is added: without it 1 for a stochastic
    sampler, 0 for DDIM. Of TCD it is the gamma that its levels were made with, and has no effect
    here. DPM++ SDE draws from a Brownian path, the others one draw a step.

    Raises:
        ValueError: there is no such sampler, or it takes no eta.
    """
    kind = find_sampler(name).noise
    if eta and kind == "none":
        raise ValueError(f"{name} adds no noise: it takes no eta")
    if eta is not None and kind == "fixed":
        raise ValueError(f"{name} adds noise of its own amount: it takes no eta")
    if kind == "none" or (kind == "optional" and not eta):
        return DETERMINISTIC[name](denoise, x, levels)
    draws = noise.device(x)
    if kind in ("fixed", "gamma"):
        return STOCHASTIC[name](denoise, x, levels, draws)
    given = {} if eta is None else {"eta": eta}
    if name == "dpmpp_sde":
        finite = next(level.ratio for level in levels if level.alpha)
        path = BrownianNoise([stream.seed for stream in noise.streams], x, finite)
        return STOCHASTIC[name](denoise, x, levels, path, **given)
    return STOCHASTIC[name](denoise, x, levels, draws, **given)

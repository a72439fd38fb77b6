"""Denoisers out of networks: from what a network predicts to the expected x0.

Every prediction type is a linear function of x and x0 at a level, so each is two formulas: x0 from
the output, and the output from x0. The second is also the training target.

Dimensions: B pictures, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.schedule import Schedule
from triptych.diffusion.steps import Denoiser, Level

Predicts = Literal["noise", "velocity", "sample", "flow", "edm"]
SIGMA_DATA = 0.5  # the standard deviation of pictures in [-1, 1] that EDM's scaling assumes
Network = Callable[[Tensor, Tensor], Tensor]
"""(x, time (B,)) to a prediction with x's shape."""
Conditioning = dict[str, Tensor]
"""The network's inputs besides x and time, by name: each (B, ...)."""
ConditionalNetwork = Callable[[Tensor, Tensor, Conditioning], Tensor]
ConditionalDenoiser = Callable[[Tensor, Level, Conditioning], Tensor]


class Parameterisation(NamedTuple):
    """A prediction type; alpha and sigma are numbers, or tensors that broadcast against x."""

    x0: Callable[[Any, Any, Any, Any], Any]  # (x, output, alpha, sigma) to x0
    output: Callable[[Any, Any, Any, Any], Any]  # (x, x0, alpha, sigma) to the output
    target: Callable[[Any, Any, Any, Any], Any]  # (x0, noise, alpha, sigma) to the target
    scale: Callable[[Any, Any], Any] = lambda alpha, sigma: 1.0  # of the network's input


def _edm_scales(alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """c_skip and c_out (arXiv:2206.00364, table 1), for x = alpha x0 + sigma noise."""
    variance = sigma**2 + (alpha * SIGMA_DATA) ** 2
    return alpha * SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance**0.5


def _edm_target(x0: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    skip, out = _edm_scales(alpha, sigma)
    return (x0 - skip * (alpha * x0 + sigma * noise)) / out


def _edm_x0(x: Any, output: Any, alpha: Any, sigma: Any) -> Any:
    skip, out = _edm_scales(alpha, sigma)
    return skip * x + out * output


def _edm_output(x: Any, x0: Any, alpha: Any, sigma: Any) -> Any:
    skip, out = _edm_scales(alpha, sigma)
    return (x0 - skip * x) / out


# x0 is computed in place on what was made for it: a sampler's own work is mostly memory
PARAMETERISATIONS: dict[str, Parameterisation] = {
    # arXiv:2006.11239, section 3.2; does not determine x0 where alpha is 0
    "noise": Parameterisation(
        x0=lambda x, output, alpha, sigma: (x - sigma * output).div_(alpha),
        output=lambda x, x0, alpha, sigma: (x - alpha * x0) / sigma,
        target=lambda x0, noise, alpha, sigma: noise,
    ),
    # arXiv:2202.00512, section 4: v = alpha noise - sigma x0
    "velocity": Parameterisation(
        x0=lambda x, output, alpha, sigma: (
            (alpha * x).sub_(sigma * output).div_(alpha**2 + sigma**2)
        ),
        output=lambda x, x0, alpha, sigma: (alpha * x - (alpha**2 + sigma**2) * x0) / sigma,
        target=lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
    ),
    "sample": Parameterisation(
        x0=lambda x, output, alpha, sigma: output,
        output=lambda x, x0, alpha, sigma: x0,
        target=lambda x0, noise, alpha, sigma: x0,
    ),
    # arXiv:2209.03003, equation 1: noise - x0
    "flow": Parameterisation(
        x0=lambda x, output, alpha, sigma: (x - sigma * output).div_(alpha + sigma),
        output=lambda x, x0, alpha, sigma: (x - (alpha + sigma) * x0) / sigma,
        target=lambda x0, noise, alpha, sigma: noise - x0,
    ),
    "edm": Parameterisation(
        x0=_edm_x0,
        output=_edm_output,
        target=_edm_target,
        scale=lambda alpha, sigma: (sigma**2 + (alpha * SIGMA_DATA) ** 2) ** -0.5,
    ),
}


def denoiser(network: Network, schedule: Schedule, predicts: Predicts) -> Denoiser:
    """The denoiser of a network that predicts noise, velocity, x0, a flow, or EDM's mixture.

    Returns x's dtype, whatever the network computes in. A level without a time is looked up in the
    schedule by its ratio; x is then rescaled to the schedule's alpha.

    Raises:
        ValueError: noise is predicted and the schedule starts at pure noise.
    """
    denoise = conditional_denoiser(lambda x, time, _: network(x, time), schedule, predicts)
    return lambda x, level: denoise(x, level, {})


def conditional_denoiser(
    network: ConditionalNetwork, schedule: Schedule, predicts: Predicts
) -> ConditionalDenoiser:
    """`denoiser` of a network with conditioning, passed with each call."""
    kind = parameterisation(predicts, schedule)

    def denoise(
        x: Float[Tensor, "B ..."], level: Level, cond: Conditioning
    ) -> Float[Tensor, "B ..."]:
        x, level, time = match_schedule(x, level, schedule)
        scale = kind.scale(level.alpha, level.sigma)
        output = network(x if scale == 1 else x * scale, time, cond).to(x.dtype)
        x0: Tensor = kind.x0(x, output, level.alpha, level.sigma)
        return x0

    return denoise


def parameterisation(predicts: Predicts, schedule: Schedule) -> Parameterisation:
    """The formulas of a prediction type.

    Raises:
        ValueError: an unknown type, or noise where the schedule starts at pure noise.
    """
    if predicts not in PARAMETERISATIONS:
        known = ", ".join(PARAMETERISATIONS)
        raise ValueError(f"no parameterisation {predicts!r}; there are {known}")
    if predicts == "noise" and schedule.at(schedule.noisiest).alpha == 0:
        raise ValueError(
            "a network that predicts noise cannot start from pure noise (alpha 0), where it does "
            "not determine the picture. Predict velocity, or keep some signal in the schedule"
        )
    return PARAMETERISATIONS[predicts]


def match_schedule(x: Tensor, level: Level, schedule: Schedule) -> tuple[Tensor, Level, Tensor]:
    """x and level as the network was trained on them, and the level's time for each picture."""
    if level.time is None:
        trained = schedule.of_ratio(level.ratio)
        x, level = x * (trained.alpha / level.alpha), trained
    assert level.time is not None
    return x, level, torch.full((len(x),), level.time, dtype=torch.float32, device=x.device)


def variance_denoiser(
    network: Network, schedule: Schedule, predicts: Predicts = "noise"
) -> Callable[[Tensor, Level], tuple[Tensor, Tensor]]:
    """x0 and v in [0, 1] of a network whose output is a prediction of this type and v in [-1, 1],
    twice x's channels.

    v interpolates the variance of a step between its bounds (arXiv:2102.09672, equation 15).
    """
    kind = parameterisation(predicts, schedule)

    def denoise(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        x, level, time = match_schedule(x, level, schedule)
        output, v = network(x, time).to(x.dtype).chunk(2, dim=1)
        return kind.x0(x, output, level.alpha, level.sigma), (v + 1) / 2

    return denoise


def consistency(denoise: Denoiser) -> Denoiser:
    """The boundary condition of a distilled consistency model: at time 0, x0 is x itself.

    c_skip and c_out of the scaled time (arXiv:2310.04378, section 4.1, and its code).
    """

    def bounded(x: Tensor, level: Level) -> Tensor:
        time = 10 * (level.time or 0.0)
        total = math.hypot(time, SIGMA_DATA)
        return (SIGMA_DATA / total) ** 2 * x + time / total * denoise(x, level)

    return bounded

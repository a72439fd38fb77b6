"""Noise schedules: the scale of the picture and of the noise at each time.

`x = alpha x0 + sigma noise`. Three kinds: a table of betas (arXiv:2006.11239), noise of growing
size on an unchanged picture (EDM, arXiv:2206.00364), and a straight line from picture to noise
(rectified flow, arXiv:2209.03003). Each maps times to levels and back, and draws levels for
training. `spacing.py` chooses the levels of a sampler.

Dimensions: B levels, T training times.
"""

import bisect
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.steps import Level

Betas = Literal["linear", "scaled_linear", "cosine", "sigmoid"]
TIMES = 1000  # networks take timesteps up to about this


class Levels(NamedTuple):
    """A level for each picture of a batch."""

    alpha: Float[Tensor, " B"]
    sigma: Float[Tensor, " B"]
    time: Float[Tensor, " B"]


@runtime_checkable
class Schedule(Protocol):
    """The interface of a schedule to samplers, denoisers and objectives."""

    @property
    def noisiest(self) -> float:
        """The time with the most noise in training."""

    @property
    def cleanest(self) -> float:
        """The time with the least noise in training."""

    def at(self, time: float) -> Level:
        """The level of a time, which need not be whole."""

    def of_ratio(self, ratio: float) -> Level:
        """The level with this sigma / alpha."""

    def draw(self, share: Float[Tensor, " B"]) -> Levels:
        """Training levels, from uniform numbers in [0, 1)."""


def betas(kind: Betas, start: float = 1e-4, end: float = 0.02, count: int = TIMES) -> list[float]:
    """The variance of the noise added at each timestep; `cosine` ignores `start` and `end`.

    linear: arXiv:2006.11239, section 4. scaled_linear: linear in the square root (Stable
    Diffusion: 0.00085 to 0.012). cosine: arXiv:2102.09672, equation 17, at most 0.999. sigmoid:
    a logistic curve over [-6, 6] (arXiv:2203.02923's code, and diffusers).
    """
    if not 0 < start <= end < 1:
        raise ValueError(f"betas must rise from above 0 to below 1, not from {start} to {end}")
    if count < 2:
        raise ValueError(f"a schedule needs at least 2 training times, not {count}")
    ramp = [i / (count - 1) for i in range(count)]
    if kind == "linear":
        return [start + (end - start) * r for r in ramp]
    if kind == "scaled_linear":
        low, high = math.sqrt(start), math.sqrt(end)
        return [(low + (high - low) * r) ** 2 for r in ramp]
    if kind == "sigmoid":
        return [start + (end - start) / (1 + math.exp(6 - 12 * r)) for r in ramp]
    signal = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
    return [min(1 - signal[i + 1] / signal[i], 0.999) for i in range(count)]


def zero_terminal(values: list[float]) -> list[float]:
    """Betas shifted and scaled so that the last time is pure noise (arXiv:2305.08891, algorithm 1).

    Stretches sqrt(alpha^2) from [last, first] to [0, first]; the last beta becomes 1.
    """
    roots, product = [], 1.0
    for beta in values:
        product *= 1 - beta
        roots.append(math.sqrt(product))
    first, last = roots[0], roots[-1]
    stretched = [(root - last) * first / (first - last) for root in roots]
    signal = [1.0, *(root**2 for root in stretched)]
    return [1 - after / before for before, after in pairwise(signal)]


@dataclass(frozen=True)
class Discrete:
    """A table of betas: alpha^2 + sigma^2 = 1, times are 0 to T - 1."""

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.betas) < 2 or not all(0 < beta <= 1 for beta in self.betas):
            raise ValueError("a table needs at least two betas, each above 0 and at most 1")

    @cached_property
    def signal(self) -> Tensor:
        """alpha^2 of every training time, float64."""
        # on the CPU even where a model is built on the meta device
        return (1 - torch.tensor(self.betas, dtype=torch.float64, device="cpu")).cumprod(0)

    @cached_property
    def ratios(self) -> list[float]:
        """sigma / alpha of every training time."""
        return ((1 - self.signal) / self.signal).sqrt().tolist()

    @property
    def noisiest(self) -> float:
        return len(self.betas) - 1.0

    @property
    def cleanest(self) -> float:
        return 0.0

    def at(self, time: float) -> Level:
        """Between two times, sigma / alpha is interpolated linearly, as in diffusers."""
        low = min(max(math.floor(time), 0), len(self.ratios) - 2)
        share = min(max(time - low, 0.0), 1.0)
        start, end = self.ratios[low], self.ratios[low + 1]
        if share in (0.0, 1.0):
            return self._level(end if share else start, time)
        return self._level((1 - share) * start + share * end, time)

    def of_ratio(self, ratio: float) -> Level:
        """Between two times the time is interpolated in the logarithm of sigma / alpha."""
        high = min(max(bisect.bisect_left(self.ratios, ratio), 1), len(self.ratios) - 1)
        start, end = self.ratios[high - 1], self.ratios[high]
        if math.isinf(end):
            share = 1.0 if math.isinf(ratio) else 0.0
        else:
            share = math.log(max(ratio, 1e-10) / start) / math.log(end / start)
        return self._level(ratio, high - 1 + min(max(share, 0.0), 1.0))

    def draw(self, share: Float[Tensor, " B"]) -> Levels:
        index = (share * len(self.betas)).long()
        signal = self.signal.to(share.device)[index]
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        return Levels(alpha.to(share.dtype), sigma.to(share.dtype), index.to(share.dtype))

    def _level(self, ratio: float, time: float) -> Level:
        alpha = 1 / math.sqrt(1 + ratio**2) if math.isfinite(ratio) else 0.0
        return Level(alpha, alpha * ratio if alpha else 1.0, time)


@dataclass(frozen=True)
class Edm:
    """alpha is 1 and the noise grows; the time is log(sigma) / 4 (arXiv:2206.00364, table 1)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    mean: float = -1.2
    """Of log sigma in training."""
    std: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma must rise from above 0, not from {self.sigma_min} to {self.sigma_max}"
            )

    @property
    def noisiest(self) -> float:
        return math.log(self.sigma_max) / 4

    @property
    def cleanest(self) -> float:
        return math.log(self.sigma_min) / 4

    def at(self, time: float) -> Level:
        return Level(1.0, math.exp(4 * time), time)

    def of_ratio(self, ratio: float) -> Level:
        return Level(1.0, ratio, math.log(ratio) / 4)

    def draw(self, share: Float[Tensor, " B"]) -> Levels:
        log_sigma = self.mean + self.std * torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))
        return Levels(torch.ones_like(share), log_sigma.exp(), log_sigma / 4)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: alpha = 1 - t, sigma = t; the network's timestep is 1000 t.

    A `shift` above 1 spends more steps at high noise: t becomes shift t / (1 + (shift - 1) t)
    (arXiv:2403.03206, equation 23), in training and in sampling.
    """

    shift: float = 1.0
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    """The distribution of training times: logit-normal has more in the middle (section 3.1)."""
    least: float = 1 / TIMES
    """The cleanest t at which samplers call the network."""

    def __post_init__(self) -> None:
        if not self.shift > 0 or not 0 < self.least < 1:
            raise ValueError(
                f"shift must be positive and least in (0, 1), not {self.shift} and {self.least}"
            )

    @property
    def noisiest(self) -> float:
        return float(TIMES)

    @property
    def cleanest(self) -> float:
        return self.least * TIMES

    def at(self, time: float) -> Level:
        """`time` is the network's timestep, after the shift."""
        t = time / TIMES
        return Level(1 - t, t, time)

    def of_ratio(self, ratio: float) -> Level:
        return self.at(TIMES * ratio / (1 + ratio) if math.isfinite(ratio) else float(TIMES))

    def draw(self, share: Float[Tensor, " B"]) -> Levels:
        t = share
        if self.times == "logit_normal":
            t = torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)).sigmoid()
        t = shift_time(t, self.shift)
        return Levels(1 - t, t, TIMES * t)


def shift_time(t: Any, shift: float) -> Any:
    """Time, a number or a tensor, shifted towards noise (arXiv:2403.03206, equation 23)."""
    return shift * t / (1 + (shift - 1) * t)

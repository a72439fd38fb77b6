"""Data whose ideal denoiser is known: one Gaussian, and a mixture of three."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.diffusion.steps import Level

MEANS = torch.tensor([-1.2, 0.4, 1.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
STD = 0.5


def gaussian(x: Tensor, level: Level) -> Tensor:
    """E[x0 | x] for x0 from N(0, 1)."""
    return level.alpha * x / (level.alpha**2 + level.sigma**2)


def mixture(x: Tensor, level: Level) -> Tensor:
    """E[x0 | x] for x0 from three Gaussians of one width."""
    variance = (level.alpha * STD) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * MEANS
    share = (WEIGHTS.log() - off.square() / (2 * variance)).softmax(-1)
    return (share * (MEANS + level.alpha * STD**2 / variance * off)).sum(-1)


def even(steps: int, high: float = 20.0, low: float = 0.02) -> list[Level]:
    """Levels with alpha^2 + sigma^2 = 1, even in the logarithm of sigma / alpha."""
    found = []
    for i in range(steps + 1):
        ratio = math.exp(math.log(high) + (math.log(low) - math.log(high)) * i / steps)
        alpha = 1 / math.sqrt(1 + ratio**2)
        found.append(Level(alpha, alpha * ratio))
    return found


def flow(steps: int) -> list[Level]:
    """Straight from pure noise to the clean picture."""
    return [Level(i / steps, 1 - i / steps) for i in range(steps + 1)]


def integrated(x: Tensor, levels: Sequence[Level], parts: int = 40) -> Tensor:
    """The probability-flow ODE of the mixture from the first level to the last, by classical
    Runge-Kutta of fourth order in log s, independent of the samplers.
    """
    first, last = math.log(levels[0].ratio), math.log(levels[-1].ratio)
    count = parts * (len(levels) - 1)
    step = (last - first) / count

    def slope(y: Tensor, log_s: float) -> Tensor:  # dy / d log s = y - x0
        alpha = 1 / math.sqrt(1 + math.exp(2 * log_s))
        return y - mixture(alpha * y, Level(alpha, alpha * math.exp(log_s)))

    y = x / levels[0].alpha
    for i in range(count):
        at = first + i * step
        one = slope(y, at)
        two = slope(y + step / 2 * one, at + step / 2)
        three = slope(y + step / 2 * two, at + step / 2)
        four = slope(y + step * three, at + step)
        y = y + step / 6 * (one + 2 * two + 2 * three + four)
    return y * levels[-1].alpha

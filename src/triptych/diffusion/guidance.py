"""Guidance makes a denoiser out of a conditional one, so it composes with every sampler.

Dimensions: B pictures.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from triptych.diffusion.denoiser import ConditionalDenoiser, Conditioning, Parameterisation
from triptych.diffusion.samplers import Denoiser, Level


def classifier_free(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """Extrapolate from the unconditional towards the conditional answer (arXiv:2207.12598).

    `uncond` is the dropped condition, or a negative one to lead away from. Both go through the
    network as one batch. A scale of 1 is plain conditional sampling and costs one pass, as does a
    level whose sigma / alpha lies outside the interval (arXiv:2404.07724).
    """
    return _guided(denoise, cond, uncond, scale, interval, torch.lerp)


def rescaled(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    rescale: float,
    kind: Parameterisation,
    *,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """Classifier-free guidance whose strength of contrast is taken back (arXiv:2305.08891, 3.4).

    The network's own prediction, not x0, gets the standard deviation of the conditional prediction;
    `rescale` in [0, 1] mixes this with the plain one.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale is a share, 0 to 1, not {rescale}")
    if rescale == 0:
        return classifier_free(denoise, cond, uncond, scale, interval=interval)

    def guided(x: Tensor, level: Level) -> Tensor:
        def combine(away: Tensor, towards: Tensor, scale: float) -> Tensor:
            amounts = level.alpha, level.sigma
            wanted = kind.output(x, towards, *amounts)
            output = kind.output(x, away.lerp(towards, scale), *amounts)
            axes = tuple(range(1, x.ndim))
            contrast = wanted.std(axes, keepdim=True) / output.std(axes, keepdim=True)
            x0: Tensor = kind.x0(x, output * (rescale * contrast + 1 - rescale), *amounts)
            return x0

        return _guided(denoise, cond, uncond, scale, interval, combine)(x, level)

    return guided


def plus_plus(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    levels: Sequence[Level],
) -> Denoiser:
    """CFG++ (arXiv:2406.08070, algorithm 2): guided, but on the way that the model knows.

    DDIM there goes to the guided picture with the unconditional noise:
    x' = alpha' (u + w (c - u)) + sigma' (x - alpha u) / sigma for the answers c with the condition
    and u without. That is DDIM's own step guided by w / (1 - s' / s), so it is `classifier_free`
    whose scale follows the levels; the sampler must be `euler` over the same ones. `scale` is w, 0
    to 1; the denoiser's answer lies beyond the guided picture until the last step.

    Raises:
        ValueError: when asked at a level that is not one of these.
    """
    ahead = dict(pairwise(levels))

    def guided(x: Tensor, level: Level) -> Tensor:
        if level not in ahead:
            raise ValueError("CFG++ is a guidance of DDIM over the levels that it was given")
        steps_scale = scale / (1 - ahead[level].ratio / level.ratio)
        return classifier_free(denoise, cond, uncond, steps_scale)(x, level)

    return guided


def _guided(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    interval: tuple[float, float],
    combine: Callable[[Tensor, Tensor, float], Tensor],
) -> Denoiser:
    if cond.keys() != uncond.keys():
        raise ValueError(
            f"the condition has {sorted(cond)}, what to lead away from {sorted(uncond)}"
        )
    if scale == 1:
        return lambda x, level: denoise(x, level, cond)
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}

    def guided(x: Tensor, level: Level) -> Tensor:
        if not interval[0] < level.ratio <= interval[1]:
            return denoise(x, level, cond)
        away, towards = denoise(torch.cat([x, x]), level, both).chunk(2)
        return combine(away, towards, scale)

    return guided


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """x0 kept in the range of pictures, as pixel models are sampled (arXiv:2006.11239's code)."""
    return lambda x, level: denoise(x, level).clamp(low, high)

"""Guidance turns a conditional denoiser into a denoiser, so it composes with every sampler.

Dimensions: B pictures.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.denoiser import (
    ConditionalDenoiser,
    ConditionalNetwork,
    Conditioning,
    Parameterisation,
    Predicts,
    variance_denoiser,
)
from triptych.diffusion.schedule import Schedule
from triptych.diffusion.steps import Denoiser, Level

Composition: TypeAlias = Sequence[tuple[Conditioning, float]]
"""Conditions with weights that hold together: instead of x0 of one condition, guidance extrapolates
towards u + sum_i w_i (c_i - u), for the unconditional x0 u and those of the conditions c_i
(the conjunction of arXiv:2206.01714). A single one of weight 1 is that condition alone.
"""


def classifier_free(
    denoise: ConditionalDenoiser,
    cond: Conditioning | Composition,
    uncond: Conditioning,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """Extrapolate from the unconditional towards the conditional x0 (arXiv:2207.12598).

    `uncond` is the dropped condition, or that of a negative prompt. It goes through the network in
    one batch with `cond`. A scale of 1 is plain conditional sampling and costs one pass, as does a
    level whose sigma / alpha is outside the interval (arXiv:2404.07724).
    """
    return _guide(denoise, cond, uncond, scale, interval, torch.lerp)


def rescale_guidance(
    denoise: ConditionalDenoiser,
    cond: Conditioning | Composition,
    uncond: Conditioning,
    scale: float,
    rescale: float,
    kind: Parameterisation,
    *,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """Classifier-free guidance without the contrast that it adds (arXiv:2305.08891, 3.4).

    Rescales the network's output, not x0, to the standard deviation of the conditional output;
    `rescale` in [0, 1] interpolates from plain guidance.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale is a share, 0 to 1, not {rescale}")
    if rescale == 0:
        return classifier_free(denoise, cond, uncond, scale, interval=interval)

    def guided(x: Tensor, level: Level) -> Tensor:
        def combine(away: Tensor, towards: Tensor, scale: float) -> Tensor:
            amounts = level.alpha, level.sigma
            conditional = kind.output(x, towards, *amounts)
            output = kind.output(x, away.lerp(towards, scale), *amounts)
            axes = tuple(range(1, x.ndim))
            contrast = conditional.std(axes, keepdim=True) / output.std(axes, keepdim=True)
            x0: Tensor = kind.x0(x, output * (rescale * contrast + 1 - rescale), *amounts)
            return x0

        return _guide(denoise, cond, uncond, scale, interval, combine)(x, level)

    return guided


def cfg_plus_plus(
    denoise: ConditionalDenoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    levels: Sequence[Level],
) -> Denoiser:
    """CFG++ (arXiv:2406.08070, algorithm 2): the guided x0 with the unconditional noise.

    Its DDIM step is x' = alpha' (u + w (c - u)) + sigma' (x - alpha u) / sigma for the conditional
    x0 c and the unconditional u. That is DDIM with a guidance scale of w / (1 - s' / s), so this is
    `classifier_free` with a scale that depends on the level; the sampler must be `euler` over the
    same levels. `scale` is w, 0 to 1.

    Raises:
        ValueError: when called at a level that is not one of these.
    """
    ahead = dict(pairwise(levels))

    def guided(x: Tensor, level: Level) -> Tensor:
        if level not in ahead:
            raise ValueError("CFG++ needs the sampler euler over the same levels")
        steps_scale = scale / (1 - ahead[level].ratio / level.ratio)
        return classifier_free(denoise, cond, uncond, steps_scale)(x, level)

    return guided


def guide_with_variance(
    network: ConditionalNetwork,
    schedule: Schedule,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    predicts: Predicts = "noise",
) -> Callable[[Tensor, Level], tuple[Tensor, Tensor]]:
    """`classifier_free` of a network that also predicts its variance, as `variance_denoiser`:
    x0 is guided, and the variance is that of the conditional prediction, as GLIDE and Karlo are
    sampled.
    """

    def denoise(x: Tensor, level: Level, inputs: Conditioning) -> Tensor:
        plain = variance_denoiser(lambda x, time: network(x, time, inputs), schedule, predicts)
        return torch.cat(plain(x, level), dim=1)

    def combine(away: Tensor, towards: Tensor, scale: float) -> Tensor:
        unguided, guided, variance = (*away.chunk(2, 1)[:1], *towards.chunk(2, 1))
        return torch.cat([unguided.lerp(guided, scale), variance], dim=1)

    both = _guide(denoise, cond, uncond, scale, (0.0, math.inf), combine)

    def guided(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        x0, variance = both(x, level).chunk(2, dim=1)
        return x0, variance

    return guided


def _guide(
    denoise: ConditionalDenoiser,
    cond: Conditioning | Composition,
    uncond: Conditioning,
    scale: float,
    interval: tuple[float, float],
    combine: Callable[[Tensor, Tensor, float], Tensor],
) -> Denoiser:
    parts = [(cond, 1.0)] if isinstance(cond, dict) else list(cond)
    for part, _ in parts:
        if part.keys() != uncond.keys():
            raise ValueError(
                f"cond has the tensors {sorted(part)}, uncond {sorted(uncond)}: they must be the "
                "same"
            )
    weights = [weight for _, weight in parts]
    single = parts[0][0] if weights == [1.0] else None
    if single is not None and scale == 1:
        return lambda x, level: denoise(x, level, single)
    batch = {name: torch.cat([uncond[name], *(part[name] for part, _ in parts)]) for name in uncond}

    def guided(x: Tensor, level: Level) -> Tensor:
        guides = interval[0] < level.ratio <= interval[1]
        if single is not None and not guides:
            return denoise(x, level, single)
        away, *each = denoise(torch.cat([x] * (1 + len(parts))), level, batch).chunk(1 + len(parts))
        towards = each[0] if single is not None else away + _weighted_changes(away, each, weights)
        return combine(away, towards, scale) if guides else towards

    return guided


def _weighted_changes(away: Tensor, each: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    changes = torch.zeros_like(away)
    for towards, weight in zip(each, weights, strict=True):
        changes = changes + weight * (towards - away)
    return changes


def clip_x0(denoise: Denoiser) -> Denoiser:
    """Clamps x0 to the range of pictures, as pixel models are sampled (arXiv:2006.11239's code)."""
    return lambda x, level: denoise(x, level).clamp(-1, 1)


def threshold_x0(
    x0: Float[Tensor, "B C H W"], share: float, most: float
) -> Float[Tensor, "B C H W"]:
    """Dynamic thresholding (arXiv:2205.11487, section 2.3).

    Clamps each picture to +-s and divides it by s, the quantile `share` of its absolute values, at
    least 1 and at most `most`.
    """
    bound = x0.flatten(1).abs().quantile(share, dim=1).clamp(1, most).view(-1, 1, 1, 1)
    return x0.clamp(-bound, bound) / bound

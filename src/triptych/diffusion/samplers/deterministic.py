"""Deterministic samplers: generators of steps, each a function of a denoiser, x and the levels.

A sampler yields its state after every step, so callers draw bars, stream previews, or cancel by
iterating. There are no callbacks.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from triptych.diffusion.steps import (
    Denoiser,
    Level,
    SingleStep,
    Step,
    advance,
    by_euler,
    by_midpoint,
    by_trapezoid,
    log_step,
    predicted_noise,
    slide,
)

FEW = 15  # steps below which multistep methods end with first order, as DPM-Solver++ advises
Ending = Literal["few", "always", "never"]
"""When the last step of a multistep solver is of first order even if it ends above sigma 0: where
there are fewer than `FEW` steps, always, or never.
"""


def solve(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], *, step: SingleStep
) -> Iterator[Step]:
    """The same step between any two levels."""
    for level, following in pairwise(levels):
        x, x0 = step(denoise, x, level, following)
        yield Step(x, x0, following)


euler = partial(solve, step=by_euler)
"""First order, one call a step; DDIM with eta 0 (arXiv:2010.02502, equation 12)."""

heun = partial(solve, step=by_trapezoid)
"""Second order, two calls a step (arXiv:2206.00364, algorithm 1)."""

dpm2 = partial(solve, step=by_midpoint)
"""Second order, two calls a step: the slope at the midpoint in log s (arXiv:2206.00927)."""


def lms(denoise: Denoiser, x: Tensor, levels: Sequence[Level], order: int = 4) -> Iterator[Step]:
    """Adams-Bashforth in s for uneven steps: integrates a polynomial through up to four slopes."""
    ratios: list[float] = []
    slopes: list[Tensor] = []
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        if level.alpha == 0:
            x = advance(x, x0, level, following)
        else:
            ratios = [level.ratio, *ratios][:order]
            slopes = [predicted_noise(x, x0, level), *slopes][:order]
            moved = x / level.alpha
            weights = lagrange_integrals(ratios, following.ratio)
            for weight, slope in zip(weights, slopes, strict=True):
                moved = moved + weight * slope
            x = following.alpha * moved
        yield Step(x, x0, following)


def lagrange_integrals(nodes: Sequence[float], end: float) -> list[float]:
    """The integral from the first node to `end` of each Lagrange basis polynomial of the nodes."""
    start = nodes[0]
    integrals = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # coefficients in u = s - start, lowest first
        for k, other in enumerate(nodes):
            if k != j:
                shifted = [0.0, *polynomial]
                for power, coefficient in enumerate(polynomial):
                    shifted[power] -= (other - start) * coefficient
                polynomial = [c / (node - other) for c in shifted]
        length = end - start
        integrals.append(sum(c * length ** (p + 1) / (p + 1) for p, c in enumerate(polynomial)))
    return integrals


ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """PNDM without its Runge-Kutta start (arXiv:2202.09778, as Stable Diffusion uses it).

    Adams-Bashforth that treats all steps as equal. The first step averages with the noise at its
    end, so n steps take n + 1 calls.
    """
    noises: list[Tensor] = []
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        if level.alpha == 0:
            x = advance(x, x0, level, following)
        else:
            noises = [predicted_noise(x, x0, level), *noises][:4]
            noise = noises[0]
            if len(noises) == 1 and following.sigma > 0:
                ahead = advance(x, x0, level, following)
                noise = (noise + predicted_noise(ahead, denoise(ahead, following), following)) / 2
            elif len(noises) > 1:
                noise = adams_bashforth(noises)
            x = slide(x, noise, level, following)
        yield Step(x, x0, following)


def ipndm(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """`plms` that starts with lower orders instead of a second call (F-PNDM of arXiv:2202.09778, as
    in diffusers' IPNDM): n steps take n calls.

    At pure noise the predicted noise is x itself, so that level counts too.
    """
    noises: list[Tensor] = []
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        noises = [predicted_noise(x, x0, level), *noises][:4]
        if level.alpha == 0:
            x = advance(x, x0, level, following)
        else:
            x = slide(x, adams_bashforth(noises), level, following)
        yield Step(x, x0, following)


def adams_bashforth(noises: Sequence[Tensor]) -> Tensor:
    """Adams-Bashforth for equal steps: the noise of a step from that of the last ones."""
    weighted = zip(ADAMS[len(noises) - 1], noises, strict=True)
    return torch.stack([weight * past for weight, past in weighted]).sum(0)


def dpmpp_2m(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], *, ending: Ending = "few"
) -> Iterator[Step]:
    """DPM-Solver++ (2M): second order, one call a step (arXiv:2211.01095, algorithm 2)."""
    before: tuple[Tensor, float] | None = None  # x0 and log step of the step before
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        h = log_step(level, following)
        guess = x0
        first_order = ends_first_order(number, levels, following, ending)
        if before and math.isfinite(before[1]) and not first_order:
            guess = x0 + (x0 - before[0]) * (h / before[1] / 2)
        x = advance(x, guess, level, following)
        before = (x0, h)
        yield Step(x, x0, following)


def ends_first_order(
    number: int, levels: Sequence[Level], following: Level, ending: Ending
) -> bool:
    """Whether a multistep method takes this last step with first order; always to sigma 0."""
    early = ending == "always" or (ending == "few" and number + 1 < FEW)
    return following.sigma == 0 or (number == len(levels) - 2 and early)


def deis(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], *, ending: Ending = "few"
) -> Iterator[Step]:
    """DEIS, second order, one call a step (arXiv:2204.13902, section 3.3, with rho = s).

    Integrates over s a noise that is linear in log s, as in diffusers.
    """
    before: tuple[Tensor, float] | None = None  # noise and ratio of the step before
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        noise = predicted_noise(x, x0, level)
        if before is None or ends_first_order(number, levels, following, ending):
            x = advance(x, x0, level, following)
        else:
            (older, past), start, end = before, level.ratio, following.ratio
            # the integral of log(s / past), over log(start / past): 1 at start and 0 at past
            rising = end * (math.log(end / past) - 1) - start * (math.log(start / past) - 1)
            weight = rising / math.log(start / past)
            moved = x / level.alpha + weight * noise + (end - start - weight) * older
            x = following.alpha * moved
        before = (noise, level.ratio) if level.alpha > 0 else None
        yield Step(x, x0, following)


def unipc(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    order: int = 2,
    *,
    ending: Ending = "always",
) -> Iterator[Step]:
    """UniPC with B2(h) = exp(h) - 1, one call a step (arXiv:2302.04867, algorithm 3).

    The call at the end of a step also corrects that step. The order falls to 1 in the last steps,
    unless `ending` is `never`; to sigma 0 and over no distance it is always 1.
    """
    points: list[tuple[Tensor, Level]] = []  # x0 and level of the steps before, newest first
    origin, used = x, 0  # start and order of the step before
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        if used:
            x = _unipc_step(origin, points[:used], level, x0)
        points = [(x0, level), *points][:order]
        # pure noise has no log s, so no polynomial passes through that point
        finite = next((i for i, (_, p) in enumerate(points) if p.alpha == 0), len(points))
        left = order if ending == "never" else len(levels) - 1 - number
        if log_step(level, following) in (0, math.inf):
            left = 1
        origin, used = x, min(order, left, finite)
        x = _unipc_step(x, points[: max(1, used)], following)
        yield Step(x, x0, following)


def _unipc_step(
    x: Tensor, points: Sequence[tuple[Tensor, Level]], following: Level, end: Tensor | None = None
) -> Tensor:
    """UniP, whose order is the number of points; given x0 at the end of the step, UniC."""
    x0, level = points[0]
    straight = advance(x, x0, level, following)
    p = len(points) - 1 + (end is not None)
    if p == 0:
        return straight
    h = log_step(level, following)
    nodes = [-log_step(earlier, level) / h for _, earlier in points[1:]]
    slopes = [(past - x0) / node for (past, _), node in zip(points[1:], nodes, strict=True)]
    if end is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, end - x0]
    weights = [0.5] if p == 1 else _unipc_weights(nodes, h)
    scale = -following.alpha * math.expm1(-h)
    for weight, slope in zip(weights, slopes, strict=True):
        straight = straight + scale * weight * slope
    return straight


def _unipc_weights(nodes: Sequence[float], h: float) -> list[float]:
    """a with sum_m a_m r_m^(n-1) = n! phi_n(-h) (-h) / B(-h) (equation 5 of the paper)."""
    b = math.expm1(-h)
    phi, right = b / -h - 1, []
    for n in range(1, len(nodes) + 1):
        right.append(phi * math.factorial(n) / b)
        phi = phi / -h - 1 / math.factorial(n + 1)
    powers = torch.tensor([[r**n for r in nodes] for n in range(len(nodes))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(
        powers, torch.tensor(right, dtype=torch.float64)
    ).tolist()
    return weights


def invert(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], iterations: int = 10
) -> Iterator[Step]:
    """DDIM inversion: from a picture to the noise from which `euler` makes it.

    `levels` are those of `euler`, noisiest first, and must end above sigma 0; the picture is taken
    as a sample at the last one. Each step solves for the x from which Euler's step arrives here, by
    fixed-point iteration (arXiv:2309.04907); one iteration is the usual inversion, which evaluates
    the denoiser a step too early.
    """
    if levels[-1].sigma == 0:
        raise ValueError(
            "inversion needs levels that end above sigma 0: let the last be the least noise that "
            "the model was trained on"
        )
    for following, level in pairwise(reversed(levels)):
        noisier = x
        x0 = denoise(x, following)
        if level.alpha > 0:
            noisier = advance(x, x0, following, level)
        for _ in range(iterations - 1):
            x0 = denoise(noisier, level)
            share = level.sigma / following.sigma
            noisier = share * (x - (following.alpha - level.alpha / share) * x0)
        x = noisier
        yield Step(x, x0, level)

"""Deterministic samplers as plain functions of a denoiser.

A denoiser answers one question: given `x = alpha * x0 + sigma * noise`, what is the expected x0?
Parameterisation, guidance and precision are hidden behind it; a schedule supplies the levels. A
sampler walks the levels and yields its state after every step, so callers draw bars, stream
previews, or cancel by iterating. There are no callbacks.

All of them solve one equation, dy/ds = noise(x), in y = x / alpha and s = sigma / alpha (Song et
al., arXiv:2010.02502, equation 14; Karras et al., arXiv:2206.00364, equation 1). Steps are written
in x, so that a start at alpha 0, pure noise, is a number like any other; what would need its
infinite s takes a first-order step there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

FEW = 15  # steps; below it multistep methods end with first order, as DPM-Solver++ advises


class Level(NamedTuple):
    """A point of a schedule. `alpha` may be 0 (pure noise) at the first, `sigma` 0 at the last."""

    alpha: float
    sigma: float
    time: float | None = None
    """What the network is told. None where a sampler went between levels: the denoiser asks its
    schedule.
    """

    @property
    def ratio(self) -> float:
        """s = sigma / alpha, the noise beside a picture of unchanged scale."""
        return self.sigma / self.alpha if self.alpha else math.inf


Denoiser = Callable[[Tensor, Level], Tensor]


class Step(NamedTuple):
    x: Tensor  # the sample at `level`
    x0: Tensor  # the denoiser's latest guess of the clean sample
    level: Level


def predicted_noise(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise in x if x0 is clean: also the slope dy/ds."""
    return (x - level.alpha * x0) / level.sigma


def advance(x: Tensor, x0: Tensor, level: Level, following: Level) -> Tensor:
    """The exact solution from level to level if x0 stayed as it is: alpha' x0 + sigma' noise."""
    share = following.sigma / level.sigma
    return share * x + (following.alpha - level.alpha * share) * x0


def slide(x: Tensor, slope: Tensor, level: Level, following: Level) -> Tensor:
    """The exact solution from level to level if the noise stayed as it is. Needs alpha above 0."""
    share = following.alpha / level.alpha
    return share * x + (following.sigma - level.sigma * share) * slope


def between(level: Level, following: Level, share: float) -> Level:
    """Part of the way in the logarithm of s. Both ends must be finite and noisy."""
    return Level(
        level.alpha ** (1 - share) * following.alpha**share,
        level.sigma ** (1 - share) * following.sigma**share,
    )


def plain(level: Level, following: Level) -> bool:
    """Whether only a first-order step is defined: at pure noise, and to the clean picture."""
    return level.alpha == 0 or following.sigma == 0


def stride(level: Level, following: Level) -> float:
    """h, the step in the logarithm of alpha / sigma; positive towards the picture."""
    if plain(level, following):
        return math.inf
    return math.log(level.ratio / following.ratio)


def euler(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """First order, one call a step; DDIM with eta 0 (arXiv:2010.02502, equation 12)."""
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        x = advance(x, x0, level, following)
        yield Step(x, x0, following)


def heun(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """Second order, two calls a step (arXiv:2206.00364, algorithm 1)."""
    for level, following in pairwise(levels):
        x, x0 = by_trapezoid(denoise, x, level, following)
        yield Step(x, x0, following)


def by_trapezoid(
    denoise: Denoiser, x: Tensor, level: Level, following: Level
) -> tuple[Tensor, Tensor]:
    """A step with the mean slope of both ends where that is defined, and the last x0 seen."""
    x0 = denoise(x, level)
    ahead = advance(x, x0, level, following)
    if plain(level, following):
        return ahead, x0
    slope = predicted_noise(x, x0, level)
    x0 = denoise(ahead, following)
    slope = (slope + predicted_noise(ahead, x0, following)) / 2
    return slide(x, slope, level, following), x0


def dpm2(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """Second order, two calls a step: the slope of the middle in log s (arXiv:2206.00927)."""
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        if plain(level, following):
            x = advance(x, x0, level, following)
        else:
            x, x0 = by_midpoint(denoise, x, x0, level, following)
        yield Step(x, x0, following)


def by_midpoint(
    denoise: Denoiser, x: Tensor, x0: Tensor, level: Level, following: Level
) -> tuple[Tensor, Tensor]:
    """A step with the slope of the middle, and the x0 that it was read from."""
    middle = between(level, following, 0.5)
    halfway = advance(x, x0, level, middle)
    x0 = denoise(halfway, middle)
    return slide(x, predicted_noise(halfway, x0, middle), level, following), x0


def lms(denoise: Denoiser, x: Tensor, levels: Sequence[Level], order: int = 4) -> Iterator[Step]:
    """Adams-Bashforth in s, uneven steps: a polynomial through up to four slopes, integrated."""
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
            for weight, slope in zip(
                lagrange_integrals(ratios, following.ratio), slopes, strict=True
            ):
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

    Adams-Bashforth over steps that count as equal. The first step averages with the noise at its
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
                noise = adams(noises)
            x = slide(x, noise, level, following)
        yield Step(x, x0, following)


def ipndm(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """`plms` that begins with lower orders instead of a second call (arXiv:2202.09778, F-PNDM as
    diffusers' IPNDM has it): n steps take n calls.

    At pure noise the noise is x itself, so that level counts too.
    """
    noises: list[Tensor] = []
    for level, following in pairwise(levels):
        x0 = denoise(x, level)
        noises = [predicted_noise(x, x0, level), *noises][:4]
        if level.alpha == 0:
            x = advance(x, x0, level, following)
        else:
            x = slide(x, adams(noises), level, following)
        yield Step(x, x0, following)


def adams(noises: Sequence[Tensor]) -> Tensor:
    """Adams-Bashforth over steps that count as equal: the noise of a step from the last ones."""
    weighted = zip(ADAMS[len(noises) - 1], noises, strict=True)
    return torch.stack([weight * past for weight, past in weighted]).sum(0)


def dpmpp_2m(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """DPM-Solver++ (2M): second order, one call a step (arXiv:2211.01095, algorithm 2)."""
    before: tuple[Tensor, float] | None = None  # x0 of the step before, and its stride
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        h = stride(level, following)
        guess = x0
        if before and math.isfinite(before[1]) and not ends(number, levels, following):
            guess = x0 + (x0 - before[0]) * (h / before[1] / 2)
        x = advance(x, guess, level, following)
        before = (x0, h)
        yield Step(x, x0, following)


def ends(number: int, levels: Sequence[Level], following: Level) -> bool:
    """Whether a multistep method takes this step with first order: to the clean picture always."""
    return following.sigma == 0 or (number == len(levels) - 2 and number + 1 < FEW)


def deis(denoise: Denoiser, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """DEIS, second order, one call a step (arXiv:2204.13902, section 3.3, with rho = s).

    The noise is taken as linear in log s, as in diffusers, and integrated over s.
    """
    before: tuple[Tensor, float] | None = None  # noise and ratio of the step before
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        noise = predicted_noise(x, x0, level)
        if before is None or ends(number, levels, following):
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


def unipc(denoise: Denoiser, x: Tensor, levels: Sequence[Level], order: int = 2) -> Iterator[Step]:
    """UniPC with B2(h) = exp(h) - 1, one call a step (arXiv:2302.04867, algorithm 3).

    The call at the end of a step also corrects the step. The last steps fall to first order.
    """
    points: list[tuple[Tensor, Level]] = []  # x0 and level of the steps before, newest first
    origin, used = x, 0  # where the step before started, and its order
    for number, (level, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, level)
        if used:
            x = _unified(origin, points[:used], level, x0)
        points = [(x0, level), *points][:order]
        # a point of pure noise has no log s: no polynomial passes through it
        finite = next((i for i, (_, p) in enumerate(points) if p.alpha == 0), len(points))
        origin, used = x, min(order, len(levels) - 1 - number, finite)
        x = _unified(x, points[: max(1, used)], following)
        yield Step(x, x0, following)


def _unified(
    x: Tensor, points: Sequence[tuple[Tensor, Level]], following: Level, end: Tensor | None = None
) -> Tensor:
    """UniP of the order that there are points; with x0 at the end of the step, UniC."""
    x0, level = points[0]
    straight = advance(x, x0, level, following)
    p = len(points) - 1 + (end is not None)
    if p == 0:
        return straight
    h = stride(level, following)
    nodes = [-stride(earlier, level) / h for _, earlier in points[1:]]
    slopes = [(past - x0) / node for (past, _), node in zip(points[1:], nodes, strict=True)]
    if end is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, end - x0]
    weights = [0.5] if p == 1 else _unified_weights(nodes, h)
    scale = -following.alpha * math.expm1(-h)
    for weight, slope in zip(weights, slopes, strict=True):
        straight = straight + scale * weight * slope
    return straight


def _unified_weights(nodes: Sequence[float], h: float) -> list[float]:
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
    """DDIM inversion: from a picture to the noise that `euler` makes it from.

    `levels` are those of `euler`, noisiest first, and must end above sigma 0: the picture counts as
    a sample of the last. Each step solves for the x from which the sampler's own step arrives here,
    by fixed-point iteration (arXiv:2309.04907); one iteration is the usual inversion, which
    evaluates the denoiser a step too early.
    """
    if levels[-1].sigma == 0:
        raise ValueError(
            "inversion must end above sigma 0, where the noise is still in the picture: take "
            "levels whose last is the least noisy that the model was trained on"
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

"""The noise of a request: each picture has its own stream, whatever else is in the batch.

The order of draws is part of the promise (docs/architecture.md): the start at the full shape in
float32, then one draw a step of a stochastic sampler. Two sources: torch's CPU generator, and the
counter-based Philox generator, whose numbers are those of `torch.randn` on a CUDA device and so of
programs that draw their noise there.

Dimensions: B pictures.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from triptych import runtime
from triptych.diffusion.steps import Level

Source = Literal["cpu", "philox"]
MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
FINEST = 1 / 16  # of a step: shorter segments of a Brownian path are not bisected


class Stream:
    """The noise of one picture, drawn in order."""

    def __init__(self, seed: int, source: Source = "cpu"):
        self.seed, self.source = seed, source
        self.generator = runtime.generator(seed)
        self.draws = 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next standard normal draw, float32 on the CPU."""
        self.draws += 1
        if self.source == "cpu":
            return torch.randn(tuple(shape), generator=self.generator)
        return philox_normal(self.seed, self.draws - 1, shape)


class PictureNoise:
    """Noise for a batch of pictures, each from its own stream.

    Called with two levels it gives the next draw of each stream, as stochastic samplers need.
    """

    def __init__(self, seeds: Sequence[int], source: Source = "cpu"):
        self.streams = [Stream(seed, source) for seed in seeds]
        self.like: Tensor | None = None

    def start(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise (B, *shape), float32 on the CPU."""
        rows = [stream.normal(shape) for stream in self.streams]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def match(self, x: Tensor) -> "PictureNoise":
        """The same streams; later noise has x's shape, device and dtype."""
        self.like = x
        return self

    def __call__(self, level: Level, following: Level) -> Tensor:
        assert self.like is not None, "call `match` with x first"
        return self.start(self.like.shape[1:]).to(self.like)


class Point(NamedTuple):
    """A Brownian path at one place, interpolated on the straight segment that contains it."""

    value: Tensor
    width: float  # of the segment
    missing: float  # variance that the straight line lacks there


class BrownianNoise:
    """Increments of one Brownian path a picture, divided by their standard deviation.

    The path runs over s = sigma / alpha, from 0 to that of the first finite level. Its values are
    found by bisection (Levy's construction; arXiv:2001.01328, section 4), each from a generator
    seeded by its position, so the path of a seed is the same for any number of steps, and more
    steps refine a picture instead of changing it. Bisection ends at segments of a sixteenth of the
    step, where the path is interpolated linearly; the variance that this loses is known, so an
    increment still has variance 1, and its correlation with its neighbours is at most 1/64. A step
    from pure noise takes an ordinary draw.
    """

    def __init__(self, seeds: Sequence[int], x: Tensor, most: float):
        self.seeds, self.like, self.most = seeds, x, most
        self.generator = runtime.generator(0)  # seeded for every draw
        # midpoints computed for this step, and for the step before
        self.midpoints: tuple[dict[float, Tensor], dict[float, Tensor]] = {}, {}
        self.ends: dict[float, Point] = {}  # of the last step

    def __call__(self, level: Level, following: Level) -> Tensor:
        if math.isinf(level.ratio):
            return self._normal(-1, 0).to(self.like)
        start, end = level.ratio / self.most, following.ratio / self.most
        finest = FINEST * (start - end)
        self.midpoints = {}, self.midpoints[0]
        here, there = self._at(start, finest), self._at(end, finest)
        self.ends = {start: here, end: there}
        variance = start - end - here.missing - there.missing
        return ((here.value - there.value) / math.sqrt(variance)).to(self.like)

    def _at(self, place: float, finest: float) -> Point:
        """The path at a place in [0, 1], on a segment no wider than `finest`."""
        end = self.ends.get(place)
        if end is not None and end.width <= finest:
            return end
        left, right, depth, index = 0.0, 1.0, 0, 0
        low, high = torch.zeros(()), self._midpoint(1.0, lambda: self._normal(0, 0))
        while place not in (left, right) and right - left > finest:
            depth += 1
            middle = (left + right) / 2
            value = self._midpoint(
                middle, partial(self._bridge, low, high, right - left, depth, index)
            )
            if place < middle:
                right, high, index = middle, value, 2 * index
            else:
                left, low, index = middle, value, 2 * index + 1
        if place in (left, right):
            return Point(low if place == left else high, 0.0, 0.0)
        share = (place - left) / (right - left)
        missing = (place - left) * (right - place) / (right - left)
        return Point(torch.lerp(low, high, share), right - left, missing)

    def _midpoint(self, place: float, compute: Callable[[], Tensor]) -> Tensor:
        newer, older = self.midpoints
        if place not in newer:
            newer[place] = older[place] if place in older else compute()
        return newer[place]

    def _bridge(self, low: Tensor, high: Tensor, width: float, depth: int, index: int) -> Tensor:
        """The midpoint between two values of the path, `width` apart."""
        normal = self._normal(depth, index)
        return (low + high).mul_(0.5).add_(normal, alpha=math.sqrt(width) / 2)

    def _normal(self, depth: int, index: int) -> Tensor:
        rows = torch.empty(len(self.seeds), *self.like.shape[1:])
        for row, seed in zip(rows, self.seeds, strict=True):
            self.generator.manual_seed(runtime.key(seed, "path", depth, index))
            row.normal_(generator=self.generator)
        return rows


def philox_normal(seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise from Philox 4x32-10, float32: number i of draw `draw` of a seed.

    The counter is (draw, 0, i, 0) and the key the seed's two halves; the first two of the four
    numbers go through the sine branch of the Box-Muller transform.
    """
    count = math.prod(shape)
    place = torch.arange(count, dtype=torch.int64)
    zero = torch.zeros_like(place)
    counter = (zero + draw, zero, place, zero)
    first, second, _, _ = philox(counter, (seed & MASK, seed >> 32 & MASK))
    u = (first.double() + 0.5) / 2**32
    angle = (second.double() + 0.5) * (2 * math.pi / 2**32)
    normal = (-2 * u.log()).sqrt() * angle.sin()
    return normal.float().view(tuple(shape))


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Takes and returns int64 tensors that hold 32-bit numbers.
    """
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        first_high, first_low = _product(MULTIPLIERS[0], a)
        second_high, second_low = _product(MULTIPLIERS[1], c)
        a, b, c, d = second_high ^ b ^ low, second_low, first_high ^ d ^ high, first_low
        low, high = (low + WEYL[0]) & MASK, (high + WEYL[1]) & MASK
    return a, b, c, d


def _product(multiplier: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a 64-bit product, without overflowing int64."""
    lower = multiplier * (value & 0xFFFF)  # below 2^48
    upper = multiplier * (value >> 16) + (lower >> 16)
    return upper >> 16, (upper << 16 | lower & 0xFFFF) & MASK

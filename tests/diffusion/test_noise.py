"""The noise of a request: known numbers, company, Brownian paths."""

import math
from itertools import pairwise

import pytest
import torch

from triptych.diffusion.noise import BrownianNoise, PictureNoise, philox, philox_normal
from triptych.diffusion.steps import Level
from triptych.runtime import generator, key

KNOWN = [  # the known-answer vectors that the authors of Philox publish (Random123, philox4x32-10)
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_numbers(counter, key, expected) -> None:
    found = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(part) for part in found) == expected


def test_philox_noise_is_standard_normal_and_moves_on() -> None:
    first, second = philox_normal(7, 0, (200, 500)), philox_normal(7, 1, (200, 500))
    assert first.mean() == pytest.approx(0, abs=0.01)
    assert first.var() == pytest.approx(1, abs=0.02)
    assert (first * second).mean() == pytest.approx(0, abs=0.01)
    assert torch.equal(first[0, :10], philox_normal(7, 0, (10,)))  # number i is number i
    assert not torch.equal(first, philox_normal(7 + 2**32, 0, (200, 500)))  # both halves count


@pytest.mark.parametrize("source", ["cpu", "philox"])
def test_a_picture_has_its_own_stream(source) -> None:
    """Any batch, any company, any order: the same numbers to the bit."""
    shape, level = (3, 4, 4), Level(0.6, 0.8, 1.0)

    def three(seeds: list[int]) -> list[torch.Tensor]:
        noise = PictureNoise(seeds, source)
        start = noise.start(shape)
        noise = noise.match(start)
        return [start, noise(level, level), noise(level, level)]

    together = three([5, 6, 7])
    for row, seed in enumerate((5, 6, 7)):
        for draw, alone in zip(together, three([seed]), strict=True):
            assert torch.equal(draw[row], alone[0])
    for draw, turned in zip(together, three([7, 5]), strict=True):
        assert torch.equal(draw[[2, 0]], turned)
    assert not torch.equal(together[0], together[1])


def level(ratio: float) -> Level:
    return Level(1.0, ratio)


def walked(seeds: list[int], like: torch.Tensor, ratios: list[float]) -> torch.Tensor:
    """Where a path goes between the first and the last of these places, by increments."""
    path, total = BrownianNoise(seeds, like, 16.0), torch.zeros_like(like)
    for a, b in pairwise(ratios):
        total = total + path(level(a), level(b)) * math.sqrt(a - b)
    return total


def test_a_brownian_path_is_one_path() -> None:
    """Increments add up, exactly where the path itself was halved; a seed's path knows no other."""
    like = torch.zeros(2, 3, 3, dtype=torch.float64)
    whole = BrownianNoise([1, 2], like, 16.0)(level(16.0), level(0.0)) * 4.0
    assert (walked([1, 2], like, [16.0, 9.0, 4.0, 2.5, 0.5, 0.0]) - whole).abs().max() < 1e-5
    alone = BrownianNoise([2], like[:1], 16.0)(level(9.0), level(4.0))
    assert torch.equal(alone[0], BrownianNoise([1, 2], like, 16.0)(level(9.0), level(4.0))[1])


def test_a_path_is_levy_s_construction_and_stays_that_of_its_seed() -> None:
    """Midpoints by hand from the numbers of their places, which stored pictures depend on: W(1),
    then W(1/2), then W(1/4) and W(3/4), of a path to 16.
    """

    def drawn(depth: int, index: int) -> torch.Tensor:
        return torch.randn(3, generator=generator(key(7, "path", depth, index)))

    one = drawn(0, 0)
    half = one / 2 + drawn(1, 0) / 2
    quarter = half / 2 + drawn(2, 0) * math.sqrt(1 / 8)
    more = (one + half) / 2 + drawn(2, 1) * math.sqrt(1 / 8)
    walk = {16.0: one, 12.0: more, 8.0: half, 4.0: quarter, 0.0: torch.zeros(3)}
    path = BrownianNoise([7], torch.zeros(1, 3), 16.0)
    for a, b in pairwise(walk):
        expected = (walk[a] - walk[b]) * 4 / math.sqrt(a - b)
        torch.testing.assert_close(path(level(a), level(b))[0], expected, atol=1e-6, rtol=1e-5)
    pure = BrownianNoise([7], torch.zeros(1, 3), 16.0)(Level(0.0, 1.0), level(16.0))
    assert torch.equal(pure[0], drawn(-1, 0))


@pytest.mark.parametrize("steps", [2, 20, 200])
def test_any_steps_go_along_the_same_brownian_path(steps: int) -> None:
    """Between places where no halving ends, too, up to what a straight piece lacks."""
    like = torch.zeros(1, 100, 100)
    ratios = [15.1 * (0.07 / 15.1) ** (i / steps) for i in range(steps + 1)]
    whole = BrownianNoise([5], like, 16.0)(level(ratios[0]), level(ratios[-1]))
    total = walked([5], like, ratios) / math.sqrt(ratios[0] - ratios[-1])
    assert (total * whole).mean() > 0.97  # two other paths: 0


@pytest.mark.parametrize("steps", [5, 50, 500])
def test_brownian_increments_have_variance_one_and_know_little_of_their_neighbours(
    steps: int,
) -> None:
    like = torch.zeros(1, 100, 100)
    path = BrownianNoise([7], like, 14.6)
    ratios = [14.6 * (0.03 / 14.6) ** (i / steps) for i in range(steps + 1)]
    drawn = torch.cat([path(level(a), level(b)) for a, b in pairwise(ratios)])
    each = drawn.flatten(1)
    assert each.var(dim=1).mean() == pytest.approx(1, abs=4 * math.sqrt(2 / each.numel()))
    neighbours = (each[1:] * each[:-1]).mean()
    assert abs(neighbours) < 1 / 64 + 4 / math.sqrt(each.numel())


def test_brownian_increments_are_standard_and_independent() -> None:
    like = torch.zeros(1, 200, 200)
    path = BrownianNoise([3], like, 14.6)
    first, second = path(level(14.6), level(5.0)), path(level(5.0), level(0.3))
    overlapping = BrownianNoise([3], like, 14.6)(level(14.6), level(0.3))
    for draw in (first, second, overlapping):
        assert draw.mean() == pytest.approx(0, abs=0.02)
        assert draw.var() == pytest.approx(1, abs=0.03)
    assert (first * second).mean() == pytest.approx(0, abs=0.02)
    shared = math.sqrt((14.6 - 5.0) / (14.6 - 0.3))  # covariance of a path with a part of itself
    assert (first * overlapping).mean() == pytest.approx(shared, abs=0.02)


def test_a_brownian_way_from_pure_noise_is_a_draw() -> None:
    like = torch.zeros(1, 100, 100)
    draw = BrownianNoise([3], like, 10.0)(Level(0.0, 1.0), level(10.0))
    assert draw.var() == pytest.approx(1, abs=0.05)

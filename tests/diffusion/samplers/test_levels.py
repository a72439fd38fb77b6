"""Levels that go up again, and the samplers that walk them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.diffusion.exact import MEANS, STD, WEIGHTS, even, gaussian, mixture
from triptych.diffusion.editing import start_at
from triptych.diffusion.samplers import deterministic, stochastic
from triptych.diffusion.samplers.levels import Restart, is_upward, restart_levels, sampler_levels
from triptych.diffusion.schedule import Discrete, Edm, Flow, betas
from triptych.diffusion.spacing import Spacing, levels
from triptych.diffusion.steps import Level

SD = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
KARRAS = Spacing("karras")


def ups(walked: list[Level]) -> list[int]:
    return [i for i, pair in enumerate(pairwise(walked)) if is_upward(*pair)]


@pytest.mark.parametrize(
    ("steps", "times", "each"), [(19, 0, 0), (20, 1, 9), (35, 1, 9), (36, 2, 9), (50, 2, 12)]
)
def test_restarts_are_those_that_automatic1111_is_known_for(steps, times, each) -> None:
    """Nothing below 20 steps, one restart of 9, from 36 on two of a quarter; s from 0.1 to 2."""
    walked = sampler_levels(SD, "restart", steps, KARRAS)
    turns = ups(walked)
    assert len(turns) == times
    assert len(walked) - 1 - times == steps  # all steps downwards count
    main = levels(SD, steps - times * each, KARRAS)
    lowest = min(main[:-1], key=lambda level: abs(level.ratio - 0.1))
    roots = np.linspace(2 ** (1 / 7), lowest.ratio ** (1 / 7), each + 1) ** 7
    for turn in turns:
        assert walked[turn] == lowest
        stretch = [level.ratio for level in walked[turn + 1 : turn + 2 + each]]
        assert stretch == pytest.approx(list(roots))
    first = turns[0] if turns else len(walked)
    rest = walked[first + times * (each + 1) + 1 :] if turns else []
    assert walked[: first + 1] + rest == main


def test_a_restart_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"goes from about s = 0.1 back to 2"):
        sampler_levels(Edm(sigma_max=1.5), "restart", 20, KARRAS)


@pytest.mark.parametrize("schedule", [SD, Edm(), Flow()])
def test_every_schedule_restarts(schedule) -> None:
    kind = "trailing" if isinstance(schedule, Flow) else "karras"
    walked = sampler_levels(schedule, "restart", 20, Spacing(kind))
    assert len(ups(walked)) == 1 and len(walked) == 22


def test_levels_that_only_go_down_make_restart_heun() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    walked = [*even(12), Level(1.0, 0.0)]
    for ours, plain in zip(
        stochastic.restart(mixture, x, walked, None),
        deterministic.heun(mixture, x, walked),
        strict=True,
    ):
        assert torch.equal(ours.x, plain.x) and ours.level == plain.level


def test_each_restart_takes_back_a_known_share_of_an_error() -> None:
    """For N(0, 1) the ODE scales y by g = sqrt((1 + low^2) / (1 + high^2)): a wrong variance v of y
    becomes g^2 (v + high^2 - low^2), whose fixed point is the right one, 1 + low^2.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(100_000, dtype=torch.float64)  # all variance is lost
    expected = 0.0
    walked = restart_levels(Edm(), 120, KARRAS, Restart(30, 3))
    turn = ups(walked)[0]
    low = walked[turn].ratio
    g2 = (1 + low**2) / (1 + 2**2)

    def noise(level: Level, following: Level) -> torch.Tensor:
        return torch.randn(len(x), generator=generator, dtype=torch.float64)

    reached = [
        float(step.x.var())
        for step in stochastic.restart(gaussian, x, walked[turn : turn + 3 * 31 + 1], noise)
        if step.level == walked[turn]
    ]
    assert len(reached) == 3
    for variance in reached:
        expected = g2 * (expected + 4 - low**2)
        assert variance == pytest.approx(expected, rel=0.02)
    assert abs(reached[-1] - (1 + low**2)) < 0.02 < abs(reached[0] - (1 + low**2))


def moments(sampler, walked: list[Level]) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 20_000

    def noise(level: Level, following: Level) -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    first = walked[0]
    x = first.sigma * noise(first, first)
    x = x + first.alpha * MEANS[torch.multinomial(WEIGHTS, count, True, generator=generator)]
    x = x + first.alpha * STD * noise(first, first)
    *_, last = sampler(mixture, x, walked, noise)
    mean = (WEIGHTS * MEANS).sum()
    variance = (WEIGHTS * (MEANS - mean) ** 2).sum() + STD**2
    third = (WEIGHTS * ((MEANS - mean) ** 3 + 3 * (MEANS - mean) * STD**2)).sum()
    assert float(last.x.mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(last.x.var()) == pytest.approx(float(variance), rel=0.03)
    assert float(((last.x - last.x.mean()) ** 3).mean()) == pytest.approx(float(third), abs=0.06)


@pytest.mark.parametrize("schedule", [SD, Flow()])
def test_restart_reproduces_the_moments_of_a_mixture(schedule) -> None:
    kind = "trailing" if isinstance(schedule, Flow) else "karras"
    moments(stochastic.restart, sampler_levels(schedule, "restart", 60, Spacing(kind)))


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_tcd_overshoots_to_a_share_of_the_next_time(gamma) -> None:
    walked = sampler_levels(SD, "tcd", 4, Spacing("lcm", whole_times=True), eta=gamma)
    times = [999, 759, 499, 259]
    further = [math.floor((1 - gamma) * time) for time in times[1:]]
    between = [time for pair in zip(further, times[1:], strict=True) for time in pair]
    assert [level.time for level in walked] == [999, *between, 0]
    assert ups(walked) == [1, 3, 5]


def test_tcd_without_gamma_is_ddim() -> None:
    walked = sampler_levels(SD, "tcd", 4, Spacing("lcm", whole_times=True), eta=0.0)
    assert walked == levels(SD, 4, Spacing("lcm", whole_times=True, end="least"))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for ours, plain in zip(
        stochastic.tcd(mixture, x, walked, None),
        deterministic.euler(mixture, x, walked),
        strict=True,
    ):
        assert torch.equal(ours.x, plain.x)


@pytest.mark.parametrize(
    ("schedule", "gamma", "words"),
    [(SD, 1.5, "a share, 0 to 1, not 1.5"), (Edm(), 0.3, "tcd needs timesteps")],
)
def test_what_tcd_cannot_walk_is_refused(schedule, gamma, words) -> None:
    with pytest.raises(ValueError, match=words):
        sampler_levels(schedule, "tcd", 4, KARRAS, eta=gamma)


@pytest.mark.parametrize("schedule", [SD, Flow()])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_tcd_of_exact_trajectories_keeps_the_variance(schedule, gamma) -> None:
    """For N(0, 1) the ODE scales by sqrt(alpha^2 + sigma^2); a network that answers what leads to
    its end exactly, as a distilled one should, has samples of the right variance at each level.
    """
    walked = sampler_levels(schedule, "tcd", 5, Spacing("trailing"), eta=gamma)
    leads_to = {pair[0]: pair[1] for pair in pairwise(walked) if not is_upward(*pair)}
    generator = torch.Generator().manual_seed(0)
    count = 100_000

    def size(level: Level) -> float:
        return math.hypot(level.alpha, level.sigma)

    def noise(level: Level, following: Level) -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    def trajectory(x: torch.Tensor, level: Level) -> torch.Tensor:
        end = leads_to[level]
        share = end.sigma / level.sigma
        return (size(end) / size(level) - share) / (end.alpha - level.alpha * share) * x

    x = size(walked[0]) * noise(walked[0], walked[0])
    steps = list(stochastic.tcd(trajectory, x, walked, noise))
    assert len(steps) == 9  # five steps, and noise after all but the last
    for step in steps:
        assert float(step.x.std()) == pytest.approx(size(step.level), rel=0.01)


@pytest.mark.parametrize(
    ("steps", "orders"), [(1, [1]), (2, [2]), (3, [2, 1]), (7, [3, 3, 1]), (9, [3, 3, 2, 1])]
)
def test_dpm_fast_has_even_steps_whatever_their_order(steps, orders) -> None:
    """In log s, from the most noise to the least, with the looks at equal parts of each."""
    walked = sampler_levels(SD, "dpm_fast", steps, Spacing("exponential"))
    edges = np.linspace(math.log(SD.ratios[-1]), math.log(SD.ratios[0]), len(orders) + 1)
    expected = [edges[0]]
    for order, (start, end) in zip(orders, pairwise(edges), strict=True):
        expected += [start + (end - start) * part / order for part in range(1, order + 1)]
    assert [math.log(level.ratio) for level in walked] == pytest.approx(expected)


def test_dpm_fast_of_a_flow_begins_at_pure_noise() -> None:
    walked = sampler_levels(Flow(), "dpm_fast", 9, Spacing("trailing"))
    assert len(walked) == 10 and walked[0].alpha == 0 and not ups(walked)


def test_a_share_of_a_walk_counts_and_begins_with_steps_towards_the_picture() -> None:
    walked = sampler_levels(SD, "restart", 20, KARRAS)
    turn = ups(walked)[0]
    for strength in (1.0, 0.5, 0.45, 0.1):
        left = start_at(walked, strength)
        assert len(left) - 1 - len(ups(left)) == int(20 * strength)
        assert not is_upward(left[0], left[1])
        assert left == walked[-len(left) :]
    first = start_at(walked, (20 - turn) / 20)[0]  # the noise up to it is the picture's own
    assert first == walked[turn + 1] and math.isclose(first.ratio, 2)

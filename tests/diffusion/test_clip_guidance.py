"""Guidance by a score against posteriors that are known: by algebra, and by summing them up."""

import math

import pytest
import torch

from tests.diffusion.exact import even, gaussian, mixture
from triptych.diffusion.clip_guidance import guide_by_score
from triptych.diffusion.samplers.deterministic import dpmpp_2m, euler
from triptych.diffusion.steps import Level

LEVELS = [Level(0.6, 0.8), Level(1.0, 3.0), Level(0.3, 0.7), Level(0.99, 0.1)]


def points(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 1, 1, 1, generator=generator, dtype=torch.float64)


def spread(level: Level) -> float:
    """The variance of x0 given x where x0 is from N(0, 1)."""
    return level.sigma**2 / (level.alpha**2 + level.sigma**2)


def summed(x: torch.Tensor, level: Level, likelihood) -> torch.Tensor:
    """E[x0 | x, y] for x0 from N(0, 1), as a sum over a fine grid of x0: Bayes's rule itself."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    off = x.flatten()[:, None] - level.alpha * grid
    log = -grid.square() / 2 - off.square() / (2 * level.sigma**2) + likelihood(grid)
    return ((log.softmax(1) * grid).sum(1)).view(x.shape)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_linear_score_gives_the_exact_posterior_mean(level, scale) -> None:
    """log p(y | x0) = c x0: averaged over what x leaves open it is c E[x0 | x] + c^2 v / 2, whose
    gradient is that of the score of E[x0 | x].
    """
    guided = guide_by_score(gaussian, lambda x0: 1.7 * x0.flatten(1).sum(1), scale)
    exact = summed(points(), level, lambda grid: scale * 1.7 * grid)
    assert torch.allclose(guided(points(), level), exact, atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_a_quadratic_score_gives_the_exact_posterior_mean(level) -> None:
    """y = x0 + noise of variance 0.3: given x, y is Gaussian about E[x0 | x], and what x leaves
    open of x0 adds to its variance. The answer is the precision-weighted mean of both.
    """
    seen, variance, v = 0.9, 0.3, spread(level)

    def score(x0: torch.Tensor) -> torch.Tensor:
        return -((seen - x0).square() / (2 * (variance + v))).flatten(1).sum(1)

    guided = guide_by_score(gaussian, score)(points(), level)
    by_hand = (gaussian(points(), level) / v + seen / variance) / (1 / v + 1 / variance)
    assert torch.allclose(guided, by_hand, atol=1e-12)
    assert torch.allclose(
        guided, summed(points(), level, lambda g: -(seen - g).square() / (2 * variance)), atol=1e-9
    )


@pytest.mark.parametrize("sampler", [euler, dpmpp_2m])
def test_samples_follow_the_tilted_distribution(sampler) -> None:
    """N(0, 1) times exp(c x) is N(c, 1), whose probability-flow ODE ends at a known place."""
    c, levels = 1.3, even(200)
    guided = guide_by_score(gaussian, lambda x0: c * x0.flatten(1).sum(1))
    start = points(1)
    *_, last = sampler(guided, start, levels)
    end = levels[-1].alpha * c + (start - levels[0].alpha * c)  # alpha^2 + sigma^2 is 1
    assert torch.allclose(last.x, end, atol=0.02)
    assert not torch.allclose(last.x, start, atol=0.5)


def test_it_leads_to_the_mode_that_scores_high() -> None:
    """Of a mixture of three, samples go where the score is: three quarters were elsewhere."""
    guided = guide_by_score(mixture, lambda x0: 8 * x0.flatten(1).sum(1))
    start = torch.randn(200, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    *_, plain = dpmpp_2m(mixture, start, even(60))
    *_, last = dpmpp_2m(guided, start, even(60))
    assert float((plain.x > 1).double().mean()) < 0.3
    assert float((last.x > 1).double().mean()) > 0.95


def test_pure_noise_other_levels_and_no_scale_are_plain() -> None:
    def steep(x0: torch.Tensor) -> torch.Tensor:
        return 100 * x0.flatten(1).sum(1)

    x = points()
    guided = guide_by_score(gaussian, steep, interval=(0.5, 2.0))
    for level in (Level(0.0, 1.0), Level(1.0, 3.0), Level(1.0, 0.4)):
        assert torch.equal(guided(x, level), gaussian(x, level))
    assert not torch.equal(guided(x, Level(1.0, 1.0)), gaussian(x, Level(1.0, 1.0)))
    assert guide_by_score(gaussian, steep, 0.0) is gaussian


def test_a_step_is_never_longer_than_the_most() -> None:
    level, x = Level(1.0, 1.0), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    slopes = torch.tensor([1e-3, 10.0, 1e6], dtype=torch.float64)

    def score(x0: torch.Tensor) -> torch.Tensor:
        return slopes * x0.flatten(1).sum(1)

    shift = guide_by_score(gaussian, score, most=0.25)(x, level) - gaussian(x, level)
    free = guide_by_score(gaussian, score)(x, level) - gaussian(x, level)
    sizes = shift.flatten(1).square().mean(1).sqrt()
    assert torch.allclose(sizes[1:], torch.tensor([0.25, 0.25], dtype=torch.float64))
    assert torch.allclose(shift[0], free[0])  # short ones stay as they are
    assert torch.allclose(shift[1] / 0.25, free[1] / free[1].square().mean().sqrt())


def test_it_works_where_samplers_run_and_leaves_no_gradients_behind() -> None:
    guided = guide_by_score(gaussian, lambda x0: x0.flatten(1).sum(1))
    outside = guided(points(), LEVELS[0])
    with torch.inference_mode():
        inside = guided(points() + 0, LEVELS[0])
    with torch.no_grad():
        frozen = guided(points(), LEVELS[0])
    assert torch.equal(outside, inside) and torch.equal(outside, frozen)
    assert not outside.requires_grad and outside.grad_fn is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": math.nan}, "finite"),
        *(({"most": most}, "most must be above 0") for most in (0.0, -0.5, math.nan)),
    ],
)
def test_nonsense_is_refused(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        guide_by_score(gaussian, lambda x0: x0.sum(), **options)


def test_a_score_is_one_number_a_picture() -> None:
    with pytest.raises(ValueError, match=r"one number a picture, \(5,\)"):
        guide_by_score(gaussian, lambda x0: x0.sum())(points(), LEVELS[0])

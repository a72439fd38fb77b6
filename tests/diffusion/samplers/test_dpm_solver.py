"""DPM-Solver against exact solutions: what a tolerance buys, moments, ends."""

import math
from itertools import pairwise

import pytest
import torch

from tests.diffusion.exact import MEANS, STD, WEIGHTS, even, flow, gaussian, integrated, mixture
from triptych.diffusion.samplers.dpm_solver import (
    Tolerance,
    descent,
    dpm_adaptive,
    dpm_fast,
    fast_orders,
    step_by_noise,
)
from triptych.diffusion.sampling import track_progress
from triptych.diffusion.steps import Level, between

X = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]  # one picture
ENDS = even(1)


@pytest.mark.parametrize("calls", range(1, 30))
def test_every_call_is_spent(calls) -> None:
    orders = fast_orders(calls)
    assert sum(orders) == calls and orders == sorted(orders, reverse=True)
    assert len(orders) == calls // 3 + 1  # as many steps as the paper says


@pytest.mark.parametrize(("degree", "halved"), [(0, False), (0, True), (1, False)])
def test_a_step_is_exact_for_noise_that_is_a_polynomial_in_log_s(degree, halved) -> None:
    """dy/ds = c u^degree with u = log(s / s0), integrated by hand: exact in y."""
    first, last = ENDS
    h = math.log(first.ratio / last.ratio)

    def noise(level: Level) -> torch.Tensor:
        return torch.tensor(0.7 * math.log(level.ratio / first.ratio) ** degree)

    middle = between(first, last, 0.5)
    seen = [(noise(first), first), (noise(middle), middle)]
    # integral over s of u^degree: s0 (e^-h - 1), or s0 (1 - e^-h (1 + h))
    exact = math.expm1(-h) if degree == 0 else -math.expm1(-h) - h * math.exp(-h)
    reached = step_by_noise(torch.zeros((), dtype=torch.float64), seen, last, halved=halved)
    wanted = last.alpha * 0.7 * first.ratio * exact
    assert float(reached) == pytest.approx(wanted, rel=1e-5)


def drawn(tolerance: Tolerance, levels=ENDS) -> tuple[torch.Tensor, int, int]:
    """Where it ends, its calls and its steps."""
    calls = []

    def counted(x: torch.Tensor, level: Level) -> torch.Tensor:
        calls.append(level)
        return mixture(x, level)

    steps = list(dpm_adaptive(counted, X, levels, tolerance=tolerance))
    assert steps[-1].level == levels[-1]
    ratios = [step.level.ratio for step in steps]
    assert ratios == sorted(ratios, reverse=True)
    return steps[-1].x, len(calls), len(steps)


def test_a_tolerance_is_kept_and_costs_its_third_root() -> None:
    truth = integrated(X, even(100))
    errors, calls = [], []
    for digit in (1e-2, 1e-3, 1e-5, 1e-7):
        end, called, _ = drawn(Tolerance(digit, digit))
        errors.append(float((end - truth).abs().max()))
        calls.append(called)
        assert errors[-1] < 5 * digit
    assert errors == sorted(errors, reverse=True)
    # the error that is watched is the second order's, h^3
    assert calls[3] / calls[2] == pytest.approx(100 ** (1 / 3), rel=0.15), calls


def test_only_the_ends_of_its_levels_matter() -> None:
    assert torch.equal(drawn(Tolerance())[0], drawn(Tolerance(), even(30))[0])


def test_steps_that_are_too_long_are_taken_back() -> None:
    """From a first try over the whole way it comes back to a picture as good."""
    truth = integrated(X, even(100))
    end, calls, steps = drawn(Tolerance(1e-3, 1e-3, first=6.0))
    assert (end - truth).abs().max() < 5e-3
    assert calls > 3 * steps  # a step that stands takes three


def test_a_controller_with_memory_arrives_too() -> None:
    truth = integrated(X, even(100))
    end, _, _ = drawn(Tolerance(1e-4, 1e-4, gains=(0.2, 0.7, 0.0)))
    assert (end - truth).abs().max() < 5e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 11, 200])
@pytest.mark.parametrize("sampler", [dpm_fast, dpm_adaptive])
def test_pure_noise_to_the_clean_picture(sampler, steps) -> None:
    """For N(0, 1) the flow's ODE is the identity; both ends have no log s."""
    more = {"tolerance": Tolerance(1e-3, 1e-3)} if sampler is dpm_adaptive else {}
    *_, last = sampler(gaussian, X, flow(steps), **more)
    assert last.level == flow(steps)[-1]
    assert last.x.isfinite().all()
    if steps == 200:
        assert (last.x - X).abs().max() < 0.05


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("sampler", [dpm_fast, dpm_adaptive])
def test_moments_with_noise(sampler, eta) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 40_000)

    def noise(level: Level, following: Level) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    levels = even(120, 60.0, 0.01)
    first = levels[0]
    x0 = MEANS[torch.multinomial(WEIGHTS, shape[1], True, generator=generator)][None]
    x = first.alpha * (x0 + STD * noise(first, first)) + first.sigma * noise(first, first)
    more = {"tolerance": Tolerance(1e-3, 1e-3)} if sampler is dpm_adaptive else {}
    steps = list(sampler(mixture, x, levels, noise, eta, **more))
    last = steps[-1]
    mean = (WEIGHTS * MEANS).sum()
    variance = (WEIGHTS * (MEANS - mean) ** 2).sum() + STD**2
    assert float(last.x.mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(last.x.var()) == pytest.approx(float(variance), rel=0.03)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_an_ancestor_is_not_below_the_last_level(eta) -> None:
    """What is taken away from the noise is drawn anew: the variance is that of the target."""
    level, following, least = even(2)
    for floor in (least, Level(following.alpha, 0.9 * following.sigma)):
        down, up = descent(level, following, floor, eta)
        assert down.ratio >= floor.ratio and down.alpha == following.alpha and up > 0
        assert down.sigma**2 + up**2 == pytest.approx(following.sigma**2)
    assert down.ratio == pytest.approx(floor.ratio)


@pytest.mark.parametrize("levels", [ENDS, [*even(3), Level(1.0, 0.0)], flow(5)])
def test_the_share_that_is_done_rises_to_one(levels) -> None:
    steps = dpm_adaptive(gaussian, X, levels)
    done = [share for share, _ in track_progress("dpm_adaptive", steps, levels)]
    assert len(done) > len(levels) and done[-1] == 1
    assert all(0 <= a < b for a, b in pairwise(done))


def test_answers_that_are_no_numbers_end_it() -> None:
    with pytest.raises(ValueError, match="no step short enough"):
        list(dpm_adaptive(lambda x, level: x * math.nan, X, ENDS))


def test_two_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="takes one at a time, not 2"):
        next(dpm_adaptive(gaussian, torch.zeros(2, 3), ENDS))

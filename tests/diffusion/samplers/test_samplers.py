"""Samplers against exact solutions: order, moments, starts from pure noise, inversion."""

import math
from itertools import pairwise

import pytest
import torch

from tests.diffusion.exact import MEANS, STD, WEIGHTS, even, flow, gaussian, integrated, mixture
from triptych.diffusion.names import SAMPLERS
from triptych.diffusion.samplers import deterministic, dpm_solver, singlestep, stochastic
from triptych.diffusion.samplers.deterministic import euler, heun, invert, lagrange_integrals, unipc
from triptych.diffusion.samplers.stochastic import added_noise, ancestor
from triptych.diffusion.steps import Level, advance

X = torch.linspace(-2, 2, 9, dtype=torch.float64)

ORDERS = {
    # name: the order that its error falls with, warm-up included
    "euler": 1.0,
    "heun": 2.0,
    "dpm2": 2.0,
    "lms": 2.0,  # fourth order once it is going, but the first step is Euler's: local error h^2
    "plms": 2.0,  # likewise: the averaged first step has local error h^3, its noise is of order h^2
    "ipndm": 2.0,  # likewise: its first step is of first order
    "dpmpp_2s": 2.0,
    "dpmpp_3s": 3.0,  # its levels are even in log s here
    "dpm_fast": 3.0,
    "dpmpp_2m": 2.0,  # the first step is of first order, and its error h^2
    "deis": 2.0,
    "unipc": 3.0,  # the corrector raises second order by one; its first step's error is h^3
}


def solver(name: str):
    found = (getattr(m, name, None) for m in (deterministic, singlestep, dpm_solver))
    return next(function for function in found if function)


def end(name: str, steps: int) -> torch.Tensor:
    *_, last = solver(name)(mixture, X, even(steps))
    return last.x


def test_the_records_have_these_orders() -> None:
    known = {name: record.order for name, record in SAMPLERS.items() if record.order}
    assert known == {**ORDERS, "ddim": 1, "dpm_adaptive": 3}


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return integrated(X, even(100))


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_at_the_order_of_the_method(name, truth) -> None:
    """Steps halved twice, where the error is far above rounding and the truth's own error."""
    # groups of three and a last one of second order, for what takes them: of first, it would rule
    steps = (101, 200, 401) if ORDERS[name] == 3 else (400, 800, 1600)
    errors = [float((end(name, n) - truth).abs().max()) for n in steps]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(ORDERS[name], abs=0.3), (errors, slopes)


def test_the_truth_is_true(truth) -> None:
    """Halving its steps changes nothing that matters, and the ODE keeps ranks of a mixture."""
    assert (integrated(X, even(100), 20) - truth).abs().max() < 1e-9
    assert (truth.diff() > 0).all()


@pytest.mark.parametrize("name", ORDERS)
def test_a_start_from_pure_noise_arrives(name) -> None:
    """alpha 0 at the start, sigma 0 at the end: for N(0, 1) the flow's ODE is the identity."""
    errors = []
    for steps in (200, 400):
        *_, last = solver(name)(gaussian, X, flow(steps))
        errors.append(float((last.x - X).abs().max()))
    assert errors[1] < 0.55 * errors[0] < 0.02  # and falls at least as first order does


STOCHASTIC = [
    "ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "sa_solver",
]  # fmt: skip


@pytest.mark.parametrize("name", STOCHASTIC)
def test_without_noise_a_stochastic_sampler_solves_the_ode(name, truth) -> None:
    errors = []
    for steps in (100, 200):
        sampler = getattr(stochastic, name)
        *_, last = sampler(mixture, X, even(steps), None, 0.0)  # eta 0 never asks for noise
        errors.append(float((last.x - truth).abs().max()))
    order = 1.0 if name == "ancestral" else 2.0
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("eta", "way"),
    [
        (1.0, "even"),
        (0.5, "flow"),
        pytest.param(1.0, "flow", marks=pytest.mark.slow),
        pytest.param(0.5, "even", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_moments_of_the_target_are_reproduced(name, eta, way) -> None:
    """20,000 samples of the mixture: mean, variance, skewness within sampling and step error."""
    generator = torch.Generator().manual_seed(0)
    count = 20_000
    # the variance of ancestral Euler and of DPM++ SDE is short by an amount of first order in h
    steps = 300 if name in ("ancestral", "dpmpp_sde") else 60
    levels = even(steps, 60.0, 0.01) if way == "even" else flow(steps)

    def noise(level: Level, following: Level) -> torch.Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    first = levels[0]
    x = first.sigma * noise(first, first)
    x = x + first.alpha * MEANS[torch.multinomial(WEIGHTS, count, True, generator=generator)]
    x = x + first.alpha * STD * noise(first, first)
    *_, last = getattr(stochastic, name)(mixture, x, levels, noise, eta)
    mean = (WEIGHTS * MEANS).sum()
    variance = (WEIGHTS * (MEANS - mean) ** 2).sum() + STD**2
    third = (WEIGHTS * ((MEANS - mean) ** 3 + 3 * (MEANS - mean) * STD**2)).sum()
    assert float(last.x.mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(last.x.var()) == pytest.approx(float(variance), rel=0.03)
    assert float(((last.x - last.x.mean()) ** 3).mean()) == pytest.approx(float(third), abs=0.06)


def test_sa_solver_adds_noise_only_where_it_is_stirred() -> None:
    """One draw a step everywhere; outside the times it changes nothing."""
    levels = [level._replace(time=1000.0 - 40 * i) for i, level in enumerate(even(24))]
    ends = {}
    for size in (0.0, 1.0):
        drawn: list[float | None] = []

        def noise(level: Level, following: Level, drawn=drawn, size=size) -> torch.Tensor:
            drawn.append(level.time)
            return torch.full_like(X, size)

        steps = list(stochastic.sa_solver(mixture, X, levels, noise))
        assert len(drawn) == 24
        ends[size] = {step.level.time: step.x for step in steps}
    changed = [time for time in ends[0.0] if not torch.equal(ends[0.0][time], ends[1.0][time])]
    assert max(changed) == 760  # the step that begins at 800 is the first with noise


def test_lcm_reproduces_a_gaussian_with_its_consistency_function() -> None:
    """For N(0, 1) and alpha^2 + sigma^2 = 1 the ODE is the identity, so x0 = x is consistent."""
    generator = torch.Generator().manual_seed(0)

    def noise(level: Level, following: Level) -> torch.Tensor:
        return torch.randn(50_000, generator=generator, dtype=torch.float64)

    levels = [*even(4), Level(1.0, 0.0)]
    *_, last = stochastic.lcm(lambda x, level: x, noise(levels[0], levels[0]), levels, noise)
    assert last.x.mean() == pytest.approx(0, abs=0.02)
    assert last.x.var() == pytest.approx(1, rel=0.02)


def test_the_ancestor_is_the_posterior_of_adding_noise() -> None:
    """Against Bayes' rule for two Gaussians: q(x' | x, x0) of the forward chain."""
    level, following = even(7)[2], even(7)[3]
    down, up = ancestor(level, following)
    kept, beta = level.alpha / following.alpha, added_noise(level, following) ** 2
    assert beta == pytest.approx(1 - kept**2)  # alpha^2 + sigma^2 stays 1
    precision = kept**2 / beta + 1 / following.sigma**2
    assert up**2 == pytest.approx(1 / precision)
    x, x0 = torch.tensor([0.7, -0.3], dtype=torch.float64)
    mean = (kept * x / beta + following.alpha * x0 / following.sigma**2) / precision
    assert float(deterministic.advance(x, x0, level, down)) == pytest.approx(float(mean), rel=1e-9)


def test_a_learned_variance_lies_between_its_bounds() -> None:
    level, following = even(7)[2], even(7)[3]
    _, up = ancestor(level, following)
    x = torch.zeros(1, 1)
    for v, std in ((0.0, up), (1.0, added_noise(level, following))):
        answer = (torch.zeros(1, 1), torch.full((1, 1), v))
        steps = stochastic.learned_variance(
            lambda *_, a=answer: a, x, [level, following], lambda *_: torch.ones(1, 1)
        )
        assert float(next(steps).x) == pytest.approx(std, rel=1e-6)


def test_inversion_returns_to_the_picture() -> None:
    """To the noise and back: exactly with enough iterations, to first order with one."""
    levels = even(50, 20.0, 0.05)
    for iterations, tolerance in ((30, 1e-8), (1, 0.2)):
        *_, noisy = invert(mixture, X, levels, iterations)
        assert noisy.level == levels[0]
        *_, back = euler(mixture, noisy.x, levels)
        assert (back.x - X).abs().max() < tolerance
    assert (back.x - X).abs().max() > 1e-4  # one iteration is not exact: the test can tell


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_a_step_of_inversion_takes_as_many_calls_as_it_is_given(iterations) -> None:
    calls = []

    def counted(x: torch.Tensor, level: Level) -> torch.Tensor:
        calls.append(level)
        return mixture(x, level)

    levels = even(4, 20.0, 0.05)
    assert len(list(invert(counted, X, levels, iterations))) == 4
    assert len(calls) == 4 * iterations


ENDINGS = {  # by default: of diffusers' solvers, and of k-diffusion's
    "dpmpp_2m": "few", "deis": "few",
    "dpmpp_2m_sde": "never", "dpmpp_2m_sde_heun": "never", "dpmpp_3m_sde": "never",
}  # fmt: skip


@pytest.mark.parametrize("steps", [2, 14, 15, 40])
@pytest.mark.parametrize("ending", ["default", "few", "always", "never"])
@pytest.mark.parametrize("name", ENDINGS)
def test_the_last_step_of_a_multistep_solver_is_of_first_order_where_steps_are_few(
    name, ending, steps
) -> None:
    """DPM-Solver++ has it below 15 steps. Of first order, a step is exact for its own x0."""
    options = {} if ending == "default" else {"ending": ending}
    ending = ENDINGS[name] if ending == "default" else ending
    own = getattr(deterministic, name, None)
    if own:
        walked = list(own(mixture, X, even(steps), **options))
    else:
        walked = list(getattr(stochastic, name)(mixture, X, even(steps), None, 0.0, **options))
    before, last = walked[-2:]
    straight = advance(before.x, last.x0, before.level, last.level)
    first_order = bool((last.x - straight).abs().max() < 1e-12)
    assert first_order == (ending == "always" or (ending == "few" and steps < 15))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", [6, 7, 8])
def test_the_last_step_of_a_singlestep_solver(order, steps) -> None:
    """Unless the ending is `never`, a last step that would be of full order is of first."""
    solve = singlestep.dpmpp_2s if order == 2 else singlestep.dpmpp_3s
    full = steps % order == 0
    for ending in ("never", "few"):
        before, last = list(solve(mixture, X, even(steps), ending=ending))[-2:]
        straight = advance(before.x, last.x0, before.level, last.level)
        first_order = bool((last.x - straight).abs().max() < 1e-12)
        assert first_order == (steps % order == 1 or (full and ending == "few"))


CORRECTED = ("unipc", "sa_solver")  # their call at the end of a step changes that step


@pytest.mark.parametrize(
    "name", [n for n, s in SAMPLERS.items() if "ending" in s.reads and n not in CORRECTED]
)
def test_a_last_step_without_length_changes_nothing(name) -> None:
    """As diffusers ends sigma spacings of what ends at the least noise."""
    levels = even(6)
    takes_noise = hasattr(stochastic, name)
    more = (lambda *_: torch.ones_like(X),) if takes_noise else ()
    sampler = getattr(stochastic, name) if takes_noise else solver(name)
    *_, before, last = sampler(mixture, X, [*levels, levels[-1]], *more)
    assert torch.allclose(last.x, before.x, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_a_stochastic_solver_remembers_as_many_as_its_order(order) -> None:
    """The first x0 moves the steps that remember it, and those after only by where they begin."""
    levels, found = even(5), []
    for first in (0.0, 1.0):
        values = iter([first, 0.4, -0.2, 0.7, 0.1])
        steps = stochastic.multistep_sde(
            lambda x, level, values=values: torch.full_like(x, next(values)),
            X, levels, None, 0.0, order=order,
        )  # fmt: skip
        found.append([X, *(step.x for step in steps)])
    moved = [one - other for one, other in zip(*found, strict=True)]
    for number, (level, following) in enumerate(pairwise(levels)):
        alone = stochastic.sde_step(moved[number], torch.zeros_like(X), level, following, 0.0, None)
        assert torch.allclose(moved[number + 1], alone, atol=1e-12) == (number >= order)


def test_a_last_step_without_length_only_corrects_the_one_before() -> None:
    levels = even(6)
    steps = list(unipc(mixture, X, [*levels, levels[-1]], ending="never"))
    before, last = ((step.x - integrated(X, levels)).abs().max() for step in steps[-2:])
    assert 0 < last < before


def test_inversion_needs_noise_in_the_picture() -> None:
    with pytest.raises(ValueError, match="above sigma 0"):
        next(invert(mixture, X, flow(4)))


def test_lagrange_integrals_are_those_of_polynomials() -> None:
    nodes, stop = [3.0, 4.5, 5.0, 9.0], 1.5
    weights = lagrange_integrals(nodes, stop)
    for power in range(4):
        exact = (stop ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes, strict=True)) == pytest.approx(
            exact
        )


def test_calls_of_the_denoiser_are_as_stated() -> None:
    expected = {"euler": 10, "heun": 20, "dpm2": 20, "lms": 10, "plms": 11, "dpmpp_2m": 10,
                "deis": 10, "unipc": 10, "ipndm": 10, "dpmpp_2s": 10, "dpmpp_3s": 10,
                "dpm_fast": 10}  # fmt: skip
    for name, count in expected.items():
        calls = []
        steps = solver(name)(lambda x, level, c=calls: c.append(1) or x, X, even(10))
        assert len(list(steps)) == 10
        assert len(calls) == count, name
        assert SAMPLERS[name].calls == count // 10, name
    for name in ("ancestral", *STOCHASTIC[1:]):
        calls = []
        sampler = getattr(stochastic, name)
        steps = sampler(lambda x, level, c=calls: c.append(1) or x, X, even(10), None, 0.0)
        assert len(list(steps)) == 10
        record = SAMPLERS["euler_ancestral" if name == "ancestral" else name]
        assert record.calls == len(calls) // 10, name


def test_float32_stays_float32() -> None:
    for name in ORDERS:
        *_, last = solver(name)(gaussian, X.float(), even(4))
        assert last.x.dtype == torch.float32


def test_heun_ends_with_a_plain_step() -> None:
    """At sigma 0 there is no slope: the last step is the denoiser's answer."""
    *_, last = heun(gaussian, X, [*even(3), Level(1.0, 0.0)])
    assert torch.equal(last.x, last.x0)

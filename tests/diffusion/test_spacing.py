"""Spacings against numpy and scipy, written as diffusers and k-diffusion define them."""

import numpy as np
import pytest
from scipy.stats import beta as beta_distribution

from triptych.diffusion.schedule import Discrete, Edm, Flow, betas, zero_terminal
from triptych.diffusion.spacing import Spacing, levels

SD = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
ZERO = Discrete(tuple(zero_terminal(betas("scaled_linear", 0.00085, 0.012))))
BAR = np.cumprod(1 - np.array(SD.betas))
HIGH, LOW = np.sqrt((1 - BAR[-1]) / BAR[-1]), np.sqrt((1 - BAR[0]) / BAR[0])
COUNTS = (1, 2, 7, 20)


def times(steps, spacing, schedule=SD):
    return [level.time for level in levels(schedule, steps, spacing)[:-1]]


def ratios(steps, spacing, schedule=SD):
    return [level.ratio for level in levels(schedule, steps, spacing)[:-1]]


@pytest.mark.parametrize("steps", COUNTS)
def test_times_are_those_of_diffusers(steps):
    assert times(steps, Spacing("linspace")) == pytest.approx(np.linspace(999, 0, steps))
    leading = (np.arange(steps) * (1000 // steps))[::-1]
    for offset in (0, 1):
        assert times(steps, Spacing("leading", offset=offset)) == (leading + offset).tolist()
    trailing = np.round(np.arange(1000, 0, -1000 / steps)) - 1
    assert times(steps, Spacing("trailing")) == trailing.tolist()
    sgm = np.linspace(999, 0, steps + 1)[:-1]
    assert times(steps, Spacing("sgm_uniform")) == pytest.approx(sgm)
    whole = [float(round(time)) for time in np.linspace(999, 0, steps)]
    assert times(steps, Spacing("linspace", whole_times=True)) == whole
    without = np.linspace(999, 0, steps + 1)[:-1]
    assert times(steps, Spacing("linspace", include_cleanest=False)) == pytest.approx(without)


@pytest.mark.parametrize("steps", [1, 4, 7, 50])
def test_lcm_takes_every_so_many_of_fifty_trained_times(steps):
    """diffusers' LCMScheduler: of 19, 39, ... 999, the last first, at even places."""
    trained = np.arange(1, 51)[::-1] * 20 - 1
    places = np.floor(np.linspace(0, 50, steps, endpoint=False)).astype(int)
    assert times(steps, Spacing("lcm")) == trained[places].tolist()


@pytest.mark.parametrize("steps", COUNTS)
def test_ratios_are_those_of_k_diffusion(steps):
    ramp = np.linspace(0, 1, steps)
    for rho in (None, 3.0):
        power = rho or 7.0
        ends = HIGH ** (1 / power), LOW ** (1 / power)
        expected = (ends[0] + ramp * (ends[1] - ends[0])) ** power
        assert ratios(steps, Spacing("karras", rho=rho)) == pytest.approx(expected)
        bent = np.exp((1 - ramp) ** (rho or 1.0) * (np.log(HIGH) - np.log(LOW)) + np.log(LOW))
        assert ratios(steps, Spacing("polyexponential", rho=rho)) == pytest.approx(bent)
    expected = np.exp(np.linspace(np.log(HIGH), np.log(LOW), steps))
    assert ratios(steps, Spacing("exponential")) == pytest.approx(expected)
    edm = Edm(sigma_min=0.01, sigma_max=50)
    expected = np.exp(np.linspace(np.log(50), np.log(0.01), steps))
    assert ratios(steps, Spacing("exponential"), edm) == pytest.approx(expected)


@pytest.mark.parametrize("steps", COUNTS)
def test_beta_spacings_are_quantiles_of_scipy_s_distribution(steps):
    quantiles = beta_distribution.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    assert times(steps, Spacing("beta")) == pytest.approx(999 * quantiles, abs=1e-3)
    expected = LOW + (HIGH - LOW) * quantiles
    assert ratios(steps, Spacing("beta_sigma")) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_times_are_even_before_the_shift(steps, shift):
    """Between 1 and the least time; the shift is equation 23 of arXiv:2403.03206."""
    schedule, least = Flow(shift), 1 / 1000
    quantiles = beta_distribution.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    for kind, t in {
        "linspace": np.linspace(1, least, steps),
        "trailing": np.linspace(1, 0, steps + 1)[:-1],
        "sgm_uniform": np.linspace(1, 0, steps + 1)[:-1],
        "beta": least + (1 - least) * quantiles,
    }.items():
        expected = 1000 * shift * t / (1 + (shift - 1) * t)
        assert times(steps, Spacing(kind), schedule) == pytest.approx(expected, abs=1e-3)


PUBLISHED = {  # arXiv:2404.14507 and its page: ten steps and their end
    "align_your_steps": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152,
                         0.029],
    "align_your_steps_sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113,
                              0.029],
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("steps", [1, 7, 10, 25])
def test_align_your_steps_is_interpolated_in_the_logarithm(kind, steps):
    table = PUBLISHED[kind]
    places = np.linspace(0, 1, steps + 1)[:-1]
    expected = np.exp(np.interp(places, np.linspace(0, 1, 11), np.log(table)))
    assert ratios(steps, Spacing(kind)) == pytest.approx(expected)


def test_pure_noise_is_followed_by_the_levels_from_the_last_finite_one():
    """A table that ends in pure noise has no ratio there: the rest as if it began one earlier."""
    chosen = levels(ZERO, 6, Spacing("karras"))
    assert (chosen[0].alpha, chosen[0].time) == (0, 999)
    high, low = ZERO.at(998).ratio, ZERO.at(0).ratio
    expected = np.linspace(high ** (1 / 7), low ** (1 / 7), 6) ** 7
    assert [level.ratio for level in chosen[1:-1]] == pytest.approx(expected[1:])

"""Schedules: what they promise one another, and against their definitions."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch

from triptych.diffusion import names
from triptych.diffusion.schedule import (
    Discrete,
    Edm,
    Flow,
    betas,
    shift_time,
    zero_terminal,
)
from triptych.diffusion.spacing import Kind, Spacing, levels, spaced_times, start_scale
from triptych.diffusion.steps import Level

SD = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
ZERO = Discrete(tuple(zero_terminal(betas("scaled_linear", 0.00085, 0.012))))
SCHEDULES = {"sd": SD, "zero": ZERO, "edm": Edm(), "flow": Flow(), "shifted": Flow(3.0)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_level_is_found_by_its_ratio(name) -> None:
    schedule = SCHEDULES[name]
    for share in (0.02, 0.3, 0.77, 0.95):
        time = schedule.cleanest + share * (schedule.noisiest - schedule.cleanest)
        if isinstance(schedule, Discrete):
            time = round(time)  # between times, level and time are interpolated differently
        level = schedule.at(time)
        found = schedule.of_ratio(level.ratio)
        assert found == pytest.approx(level, rel=1e-6)


def test_betas_are_those_of_the_papers() -> None:
    """By numpy, from arXiv:2006.11239 (section 4), the code of Stable Diffusion, arXiv:2102.09672
    (equation 17) and GeoDiff's sigmoid.
    """
    ramp = np.linspace(0, 1, 1000)
    assert betas("linear") == pytest.approx(np.linspace(1e-4, 0.02, 1000))
    roots = np.linspace(np.sqrt(0.00085), np.sqrt(0.012), 1000)
    assert betas("scaled_linear", 0.00085, 0.012) == pytest.approx(roots**2)
    sigmoid = 1 / (1 + np.exp(-(12 * ramp - 6)))
    assert betas("sigmoid", 1e-3, 0.5) == pytest.approx(1e-3 + (0.5 - 1e-3) * sigmoid)
    f = np.cos((np.arange(301) / 300 + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = betas("cosine", count=300)
    assert cosine == pytest.approx(np.minimum(1 - f[1:] / f[:-1], 0.999)) and max(cosine) == 0.999
    assert betas("linear", 0.1, 0.3, 2) == [0.1, pytest.approx(0.3)]


def test_zero_terminal_stretches_the_roots_of_the_signal() -> None:
    """arXiv:2305.08891, algorithm 1, in numpy."""
    given = np.array(betas("scaled_linear", 0.00085, 0.012))
    roots = np.sqrt(np.cumprod(1 - given))
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    signal = np.concatenate([roots[:1] ** 2, roots[1:] ** 2 / roots[:-1] ** 2])
    assert zero_terminal(given.tolist()) == pytest.approx(1 - signal)


@pytest.mark.parametrize("table", [SD, ZERO])
def test_between_times_ratios_are_interpolated(table) -> None:
    """Linearly by the time, as diffusers does, and by the logarithm of the ratio the other way."""
    bar = np.cumprod(1 - np.array(table.betas))
    with np.errstate(divide="ignore"):
        ratios = np.sqrt((1 - bar) / bar)
    for time in (0.25, 1.5, 400.9, 997.5):
        ratio = np.interp(time, np.arange(1000), ratios)
        level = table.at(time)
        assert level.ratio == pytest.approx(ratio) and level.time == time
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
        back = np.interp(np.log(ratio), np.log(ratios[:999]), np.arange(999))
        assert table.of_ratio(ratio).time == pytest.approx(back)
        assert table.of_ratio(ratio).ratio == pytest.approx(ratio)
    for time, kept in ((-3.0, ratios[0]), (2000.0, ratios[-1])):
        assert table.at(time).ratio == pytest.approx(kept)  # as at the end of the table
    assert (table.of_ratio(0.0).sigma, table.of_ratio(0.0).time) == (0, 0)
    assert table.of_ratio(math.inf) == Level(0.0, 1.0, 999.0)
    assert table.of_ratio(1e5).time == (999 if table is SD else 998)


def test_edm_s_time_is_a_quarter_of_the_logarithm() -> None:
    """arXiv:2206.00364, table 1."""
    schedule = Edm(sigma_min=0.01, sigma_max=50)
    assert schedule.noisiest == pytest.approx(np.log(50) / 4)
    assert schedule.cleanest == pytest.approx(np.log(0.01) / 4)
    assert schedule.at(0.3) == pytest.approx(Level(1.0, np.exp(1.2), 0.3))
    assert schedule.of_ratio(7.0) == pytest.approx(Level(1.0, 7.0, np.log(7) / 4))


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_grows_with_time(name) -> None:
    schedule = SCHEDULES[name]
    step = (schedule.noisiest - schedule.cleanest) / 50
    ratios = [schedule.at(schedule.cleanest + i * step).ratio for i in range(51)]
    assert all(a < b for a, b in pairwise(ratios))


@pytest.mark.parametrize("name", SCHEDULES)
def test_training_draws_are_levels_of_the_schedule(name) -> None:
    schedule = SCHEDULES[name]
    drawn = schedule.draw((torch.arange(64) + 0.5) / 64)
    for alpha, sigma, time in zip(*(column.tolist() for column in drawn), strict=True):
        level = schedule.at(time)
        assert (alpha, sigma) == pytest.approx((level.alpha, level.sigma), rel=1e-3, abs=1e-6)


def test_training_times_are_spread_as_published() -> None:
    share = (torch.arange(10_000) + 0.5) / 10_000
    edm = Edm().draw(share).sigma.log()
    assert (edm.mean(), edm.std()) == (pytest.approx(-1.2, abs=0.01), pytest.approx(1.2, abs=0.01))
    logits = Flow().draw(share).sigma.logit()
    assert (logits.mean(), logits.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert Flow(times="uniform").draw(share).sigma.mean() == pytest.approx(0.5, abs=1e-3)
    counts = SD.draw(share).time.long().bincount(minlength=1000)
    assert counts.min() == counts.max() == 10  # every training time alike


def test_a_flow_is_shifted_after_its_logit_normal_draw() -> None:
    """arXiv:2403.03206: t = sigmoid(z), z normal (3.1), and then the shift (equation 23)."""
    z = torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64)
    t = torch.sigmoid(z)
    drawn = Flow(3.0).draw(torch.special.ndtr(z))
    assert torch.allclose(drawn.sigma, 3 * t / (1 + 2 * t))
    assert torch.allclose(drawn.alpha, 1 - drawn.sigma)
    assert torch.allclose(drawn.time, 1000 * drawn.sigma)


def test_zero_terminal_is_pure_noise_at_the_end_and_keeps_the_start() -> None:
    assert ZERO.at(999).alpha == 0 and ZERO.at(999).sigma == 1
    assert ZERO.at(0).alpha == pytest.approx(SD.at(0).alpha, rel=1e-9)


def test_a_shift_multiplies_the_ratio() -> None:
    """t / (1 - t) is the ratio, and the shift multiplies it (arXiv:2403.03206, equation 23)."""
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    moved = shift_time(t, 3.0)
    assert torch.allclose(moved / (1 - moved), 3 * t / (1 - t))


SPACINGS = {
    "sd": ["linspace", "leading", "trailing", "sgm_uniform", "lcm", "beta", "karras",
           "exponential", "lu", "polyexponential", "beta_sigma", "kl_optimal", "simple",
           "ddim_uniform", "turbo", "align_your_steps", "align_your_steps_sdxl"],
    "zero": ["linspace", "trailing", "karras", "exponential", "beta"],
    "edm": ["karras", "exponential", "lu", "polyexponential", "beta_sigma", "kl_optimal"],
    "flow": ["linspace", "trailing", "sgm_uniform", "beta", "karras", "kl_optimal"],
    "shifted": ["linspace", "trailing"],
}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in SPACINGS.items() for k in kinds])
def test_levels_fall_from_the_start_to_the_end(name, kind, steps) -> None:
    walked = levels(SCHEDULES[name], steps, Spacing(kind))
    assert len(walked) == steps + 1
    ratios = [level.ratio for level in walked]
    assert all(a > b for a, b in pairwise(ratios))
    assert walked[-1].sigma == 0 and walked[-1].alpha == 1
    if kind not in ("leading", "ddim_uniform", "align_your_steps", "align_your_steps_sdxl"):
        top = SCHEDULES[name].at(SCHEDULES[name].noisiest).ratio
        assert ratios[0] == pytest.approx(top)


def test_an_end_above_zero_is_the_least_noise_trained_on() -> None:
    walked = levels(SD, 5, Spacing("linspace", include_cleanest=False, end="least"))
    assert walked[-1] == SD.at(0)
    with pytest.raises(ValueError, match="include_cleanest"):
        levels(SD, 5, Spacing("karras", end="least"))


def test_whole_times_tell_the_network_whole_numbers() -> None:
    free, whole = (levels(SD, 7, Spacing("karras", whole_times=w)) for w in (False, True))
    assert [x.ratio for x in free] == [x.ratio for x in whole]
    assert all(x.time == round(x.time) for x in whole)
    assert any(x.time != round(x.time) for x in free)


@pytest.mark.parametrize("kind", ["linspace", "leading", "trailing", "simple"])
def test_a_walk_may_have_a_step_for_every_time(kind) -> None:
    assert spaced_times(SD, 1000, Spacing(kind)) == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("schedule", "steps", "spacing", "words"),
    [
        (SD, 0, Spacing(), "at least one step"),
        (SD, 1001, Spacing("linspace"), "1001 steps"),
        (SD, 51, Spacing("lcm"), "50 steps at most"),
        (Edm(), 5, Spacing("trailing"), "karras"),
        (Flow(), 5, Spacing("leading"), "trailing"),
    ],
)
def test_impossible_walks_are_refused(schedule, steps, spacing, words) -> None:
    with pytest.raises(ValueError, match=words):
        levels(schedule, steps, spacing)


def test_wrong_settings_are_refused() -> None:
    for wrong in (
        lambda: Discrete((0.5,)),
        lambda: Discrete((0.5, 0.0)),
        lambda: Discrete((0.5, 1.1)),
        lambda: betas("linear", 0.02, 0.01),
        lambda: betas("linear", 0.0, 0.01),
        lambda: betas("linear", 0.02, 1.0),
        lambda: betas("linear", 0.01, 0.02, 1),
        lambda: Edm(sigma_min=0.0),
        lambda: Edm(sigma_min=1.0, sigma_max=1.0),
        lambda: Edm(sigma_max=math.inf),
        lambda: Flow(shift=0.0),
        lambda: Flow(least=0.0),
        lambda: Flow(least=1.0),
        lambda: Spacing("uniform"),  # type: ignore[arg-type]
        lambda: Spacing(rho=0.0),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_start_scales() -> None:
    walked = levels(SD, 20, Spacing("leading"))
    assert start_scale(walked, "one") == 1
    assert start_scale(walked, "sigma") == walked[0].sigma < 1


def test_every_spacing_has_a_name_and_every_name_is_a_spacing() -> None:
    assert set(names.SPACINGS) == set(get_args(Kind))


@pytest.mark.parametrize("text", ["KL Optimal", "kl_optimal", "kl optimal", " Kl  Optimal "])
def test_a_spacing_by_any_of_its_names(text) -> None:
    assert names.parse_spacing(text) == "kl_optimal"
    with pytest.raises(ValueError, match="Did you mean karras"):
        names.parse_spacing("karas")
    with pytest.raises(ValueError, match="There are: karras"):
        names.parse_spacing("")


@pytest.mark.parametrize("steps", [1, 3, 16, 30])
def test_spacings_of_automatic1111_in_closed_form(steps) -> None:
    """Elsewhere than in its conventions they take the steps asked for, and end at the picture."""
    stride = 1000 // steps
    expected = {
        "simple": [999 - math.floor(i * 1000 / steps) for i in range(steps)],
        "turbo": [round((steps - i) * 1000 / steps - 1) for i in range(steps)],
        "ddim_uniform": [min((steps - 1 - i) * stride + 1, 999) for i in range(steps)],
    }
    for kind, times in expected.items():
        walked = levels(SD, steps, Spacing(kind))
        assert [level.time for level in walked[:-1]] == times
        assert [level.ratio for level in walked[:-1]] == [SD.at(time).ratio for time in times]
    high, low = (math.atan(SD.at(time).ratio) for time in (999, 0))
    walked = levels(SD, 5, Spacing("kl_optimal"))
    angles = [math.atan(level.ratio) for level in walked[:-1]]
    assert angles == pytest.approx([high + (low - high) * i / 4 for i in range(5)])

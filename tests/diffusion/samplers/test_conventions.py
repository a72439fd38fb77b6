"""AUTOMATIC1111's walks against its documented rules, written out in numpy; diffusers' are compared
with its own pictures (tests/parity).
"""

import numpy as np
import pytest

from triptych.diffusion.names import SAMPLERS
from triptych.diffusion.samplers.conventions import (
    Spread,
    automatic1111,
    automatic1111_levels,
    diffusers_levels,
    diffusers_spacing,
)
from triptych.diffusion.schedule import Discrete, Edm, Flow, betas, zero_terminal
from triptych.diffusion.spacing import Spacing, levels

TABLE = betas("scaled_linear", 0.00085, 0.012)
SCHEDULE = Discrete(tuple(TABLE))
SIGNAL = np.cumprod(1 - np.array(TABLE))
SIGMAS = np.sqrt((1 - SIGNAL) / SIGNAL)  # of every training time


def sigma_at(times):
    """k-diffusion reads its table in the logarithm."""
    return np.exp(np.interp(times, np.arange(1000), np.log(SIGMAS)))


def ratios(sampler, steps, kind, **more):
    walked, scale = automatic1111_levels(SCHEDULE, sampler, steps, kind, **more)
    assert len(walked) == steps + 1 and scale == pytest.approx(walked[0].sigma)
    assert (walked[-1].alpha, walked[-1].sigma) == (1, 0)
    return [level.ratio for level in walked[:-1]], [level.time for level in walked[:-1]]


@pytest.mark.parametrize("steps", [1, 7, 20, 150])
def test_uniform_walks_even_times_to_the_cleanest(steps) -> None:
    found, times = ratios("euler_ancestral", steps, "linspace")
    expected = np.linspace(999, 0, steps)
    assert times == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx(sigma_at(expected), rel=1e-9)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2s", "unipc", "euler"])
def test_diffusers_spreads_karras_to_the_least_sigma_and_then_nothing(sampler) -> None:
    """use_karras_sigmas of diffusers, whose solvers leave the cleanest level out of times only."""
    high, low = SIGMAS[-1] ** (1 / 7), SIGMAS[0] ** (1 / 7)
    walked, _ = diffusers_levels(SCHEDULE, sampler, 5, Spread("karras"))
    expected = [*(high + np.linspace(0, 1, 5) * (low - high)) ** 7, 0.0]
    assert [level.ratio for level in walked] == pytest.approx(expected)


def at_times(times):
    return [SIGMAS[int(time)] for time in times]


@pytest.mark.parametrize("steps", [1, 7, 16, 20, 30])
def test_the_types_of_later_versions(steps) -> None:
    """Simple, DDIM, Turbo: whole times from the noisiest down; KL Optimal: even in the angle."""
    found, _ = ratios("euler", steps, "simple")
    assert found == pytest.approx(at_times(999 - int(i * 1000 / steps) for i in range(steps)))
    theirs = np.round(np.arange(1, steps + 1) * (1000 / steps) - 1)[::-1]
    found, _ = ratios("euler", steps, "turbo")
    assert found == pytest.approx(at_times(theirs))
    walked, _ = automatic1111_levels(SCHEDULE, "euler", steps, "ddim_uniform")
    every = np.arange(1, 1000, 1000 // steps)[::-1]  # of 30 and 7 one more
    assert [level.ratio for level in walked] == pytest.approx([*at_times(every), 0])
    walked, _ = automatic1111_levels(SCHEDULE, "euler", steps, "kl_optimal")
    ends = np.arctan(SIGMAS[-1]), np.arctan(SIGMAS[0])
    assert [level.ratio for level in walked] == pytest.approx(np.tan(np.linspace(*ends, steps + 1)))


def test_dpm2_leaves_out_the_level_before_the_end() -> None:
    """It has one level more, and drops the last but one, whatever the type."""
    for kind in ("kl_optimal", "simple", "turbo", "ddim_uniform"):
        longer, _ = automatic1111_levels(SCHEDULE, "euler", 11, kind)
        found, _ = automatic1111_levels(SCHEDULE, "dpm2", 10, kind)
        expected = [level.ratio for level in (*longer[:-2], longer[-1])]
        assert [level.ratio for level in found] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sampler", "configured", "expected"),
    [
        ("lcm", "leading", "lcm"), ("lcm", "karras", "lcm"), ("tcd", "trailing", "lcm"),
        ("dpmpp_2s", "leading", "linspace"), ("dpmpp_3s", "karras", "karras"),
        ("euler", "leading", "leading"), ("ddim", "trailing", "trailing"),
    ],
)  # fmt: skip
def test_some_classes_of_diffusers_have_a_spacing_of_their_own(sampler, configured, expected):
    """Whatever timestep_spacing says; the singlestep solver has sigmas, too. Flows have none."""
    assert diffusers_spacing(SCHEDULE, sampler, configured) == expected
    assert diffusers_spacing(Flow(), sampler, configured) == configured


def test_a_pipeline_of_diffusers_gives_tcd_no_gamma() -> None:
    """Its eta is 0 there, so no level goes up again; the last is the table's first."""
    walked, scale = diffusers_levels(SCHEDULE, "tcd", 4, Spread("lcm"))
    assert [level.time for level in walked] == [999, 759, 499, 259, 0]
    assert walked[-1].ratio == pytest.approx(SIGMAS[0]) and scale == 1


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["linspace", "karras", "exponential"])
def test_flows_of_diffusers_shift_their_least_time_twice(kind, shift) -> None:
    """FlowMatchEulerDiscreteScheduler; spacings over sigma are over t, between the same ends."""

    def shifted(t):
        return shift * t / (1 + (shift - 1) * t)

    line = shifted(np.linspace(1, shifted(1e-3), 6))
    expected = {
        "linspace": line,
        "karras": np.linspace(1, line[-1] ** (1 / 7), 6) ** 7,
        "exponential": np.exp(np.linspace(0, np.log(line[-1]), 6)),
    }[kind]
    walked, _ = diffusers_levels(Flow(shift), "euler", 6, Spread(kind))
    assert [level.sigma for level in walked] == pytest.approx([*expected, 0])
    assert [level.time for level in walked[:-1]] == pytest.approx(1000 * expected)


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
@pytest.mark.parametrize(
    ("kind", "offset", "last"), [("leading", 0, 0), ("leading", 1, 1), ("trailing", 0, 99)]
)
def test_the_first_entry_of_the_table_as_an_end(sampler, kind, offset, last) -> None:
    """set_alpha_to_one=False: the step from time 0, too, which then has no length."""
    walked, _ = diffusers_levels(SCHEDULE, sampler, 10, Spread(kind, offset, end="least"))
    assert [level.time for level in walked[-2:]] == [last, 0]
    assert walked[-1].ratio == pytest.approx(SIGMAS[0])
    clean, _ = diffusers_levels(SCHEDULE, sampler, 10, Spread(kind, offset))
    assert clean[:-1] == walked[:-1] and clean[-1].sigma == 0


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "unipc"])
def test_pure_noise_has_a_little_signal_in_diffusers(sampler) -> None:
    table = Discrete(tuple(zero_terminal(TABLE)))
    walked, _ = diffusers_levels(table, sampler, 4, Spread("trailing"))
    assert walked[0].alpha == pytest.approx(2.0**-12) and walked[0].time == 999
    assert walked[1].ratio == pytest.approx(table.at(walked[1].time).ratio)
    assert diffusers_levels(table, "ddim", 4, Spread("trailing"))[0][0].alpha == 0


def test_the_other_schedule_types() -> None:
    high, low, ramp = SIGMAS[-1], SIGMAS[0], np.linspace(0, 1, 20)
    karras = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert ratios("dpmpp_2m", 20, "karras")[0] == pytest.approx(karras)
    exponential = np.exp(np.linspace(np.log(high), np.log(low), 20))
    assert ratios("dpmpp_2m_sde", 20, "exponential")[0] == pytest.approx(exponential)
    assert ratios("euler", 20, "polyexponential")[0] == pytest.approx(exponential)
    even = sigma_at(np.linspace(999, 0, 21)[:-1])
    assert ratios("euler", 20, "sgm_uniform")[0] == pytest.approx(even)
    stats = pytest.importorskip("scipy.stats")
    beta = low + (high - low) * stats.beta.ppf(1 - ramp, 0.6, 0.6)
    assert ratios("euler", 20, "beta")[0] == pytest.approx(beta, rel=1e-4)


@pytest.mark.parametrize(("xl", "second"), [(False, 6.475), (True, 6.315)])
def test_align_your_steps_has_its_table_and_then_nothing(xl, second) -> None:
    found, _ = ratios("euler", 11, "align_your_steps", xl=xl)
    assert found[:2] == pytest.approx([14.615, second]) and found[-1] == pytest.approx(0.029)
    ten, _ = ratios("euler", 10, "align_your_steps", xl=xl)
    places = np.interp(np.linspace(0, 1, 10), np.linspace(0, 1, 11), np.log(found))
    assert ten == pytest.approx(np.exp(places))


def test_dpm2_leaves_the_least_sigma_out() -> None:
    high, low = SIGMAS[-1] ** (1 / 7), SIGMAS[0] ** (1 / 7)
    longer = (high + np.linspace(0, 1, 11) * (low - high)) ** 7
    for sampler in ("dpm2", "dpm2_ancestral"):
        assert ratios(sampler, 10, "karras")[0] == pytest.approx(longer[:-1])


@pytest.mark.parametrize("sampler", ["ddim", "plms", "unipc"])
@pytest.mark.parametrize(("steps", "levels"), [(20, 20), (50, 50), (30, 31), (7, 8)])
def test_strides_of_whole_times_end_at_the_least_noise(sampler, steps, levels) -> None:
    """1000 // 30 is 33, of which 31 begin below 1000: one step more than asked for, as there."""
    walked, scale = automatic1111_levels(SCHEDULE, sampler, steps, "leading")
    times = sorted((min(t + 1, 999) for t in range(0, 1000, 1000 // steps)), reverse=True)
    assert [level.time for level in walked[:-1]] == times and len(times) == levels
    assert walked[-1].ratio == pytest.approx(SIGMAS[0]) and scale == 1


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddim_is_stable_diffusions_own(steps) -> None:
    ours = automatic1111_levels(SCHEDULE, "ddim", steps, "leading")
    theirs = diffusers_levels(SCHEDULE, "ddim", steps, Spread("leading", 1, end="least"))
    assert ours == theirs


def test_samplers_that_are_not_automatic1111s_are_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no sampler deis, .* it has .*euler") as raised:
        automatic1111("deis")
    named = str(raised.value).partition("it has ")[2].split(", ")
    assert all(automatic1111(name) for name in named) and len(named) > 10


def test_every_sampler_has_its_own_spacing() -> None:
    known = [name for name, record in SAMPLERS.items() if record.automatic1111]
    assert set(SAMPLERS) - set(known) == {
        *("ddpm", "deis", "ipndm", "dpmpp_2s", "dpmpp_3s", "tcd", "sa_solver"),
    }
    for sampler in known:
        walked, _ = automatic1111_levels(SCHEDULE, sampler, 10, automatic1111(sampler).spacing)
        assert len(walked) == 11
        noise = [level.ratio for level in walked]
        assert noise == sorted(noise, reverse=True) and len(set(noise)) == len(noise)


def test_automatic_is_what_the_program_is_known_to_choose() -> None:
    """By the names it shows: docs/prompts.md has the same list."""
    chosen: dict[str, set[str]] = {}
    for record in SAMPLERS.values():
        if record.automatic1111:
            chosen.setdefault(record.automatic1111.spacing, set()).add(record.aliases[0])
    assert chosen == {
        "karras": {"DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"},
        "exponential": {"DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE", "DPM fast",
                        "DPM adaptive"},
        "leading": {"DDIM", "PLMS", "UniPC"},
        "linspace": {"Euler", "Euler a", "Heun", "LMS", "LCM"},
    }  # fmt: skip


def test_what_the_program_lacks() -> None:
    for sampler, kind, words in (
        ("deis", "karras", "has no sampler deis"),
        ("ddim", "karras", "one spacing, leading"),
        ("restart", "exponential", "one spacing, karras"),
        ("euler", "trailing", "no schedule type trailing"),
    ):
        with pytest.raises(ValueError, match=words):
            automatic1111_levels(SCHEDULE, sampler, 10, kind)
    with pytest.raises(ValueError, match="training times"):
        automatic1111_levels(SCHEDULE, "ddim", 1000, "leading")
    for schedule in (Flow(), Edm(), Discrete(tuple(zero_terminal(TABLE)))):
        with pytest.raises(ValueError, match="use those of diffusers"):
            automatic1111_levels(schedule, "euler", 10, "karras")


@pytest.mark.parametrize("kind", ["karras", "exponential", "linspace"])
@pytest.mark.parametrize("sampler", ["dpm2", "dpm2_ancestral", "heun", "euler"])
def test_diffusers_dpm2_alone_rounds_the_times_of_karras(sampler, kind) -> None:
    """KDPM2DiscreteScheduler.set_timesteps rounds what it looks up for use_karras_sigmas."""
    walked, _ = diffusers_levels(SCHEDULE, sampler, 6, Spread(kind))
    times = [level.time for level in walked[:-1]]
    whole = all(time == round(time) for time in times if time is not None)
    assert whole == (kind == "karras" and sampler.startswith("dpm2"))


@pytest.mark.parametrize(
    ("sampler", "kind", "expected"),
    [
        ("euler", "trailing", "trailing"), ("dpmpp_2s", "trailing", "linspace"),
        ("dpmpp_3s", "leading", "linspace"), ("dpmpp_2s", "karras", "karras"),
        ("lcm", "leading", "lcm"), ("lcm", "karras", "lcm"), ("tcd", "trailing", "lcm"),
    ],
)  # fmt: skip
def test_some_classes_of_diffusers_have_one_spacing_over_times(sampler, kind, expected) -> None:
    assert diffusers_spacing(SCHEDULE, sampler, kind) == expected
    assert diffusers_spacing(Flow(), sampler, kind) == kind


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta_sigma"])
def test_diffusers_solvers_round_or_cut_the_times_of_sigmas(kind) -> None:
    """DPMSolverMultistepScheduler.set_timesteps: of Karras rounded, of the others as integers."""
    free = levels(SCHEDULE, 7, Spacing(kind, include_cleanest=True))
    walked, _ = diffusers_levels(SCHEDULE, "dpmpp_2m", 7, Spread(kind))
    whole = round if kind == "karras" else int
    times = [whole(level.time) for level in free[:-1] if level.time is not None]
    assert [level.time for level in walked[:-1]] == times
    assert times != [level.time for level in free[:-1]]

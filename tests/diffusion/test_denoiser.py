"""Parameterisations, guidance, editing: against algebra and exact answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.diffusion.exact import even, gaussian, mixture
from triptych.diffusion.denoiser import (
    PARAMETERISATIONS,
    consistency,
    denoiser,
    parameterisation,
    variance_denoiser,
)
from triptych.diffusion.editing import add_noise, inpainting, start_at
from triptych.diffusion.guidance import (
    cfg_plus_plus,
    classifier_free,
    clip_x0,
    guide_with_variance,
    rescale_guidance,
    threshold_x0,
)
from triptych.diffusion.samplers.deterministic import dpmpp_2m, euler
from triptych.diffusion.samplers.stochastic import ancestral
from triptych.diffusion.schedule import Discrete, Edm, Flow, betas, zero_terminal
from triptych.diffusion.steps import Level, advance

SD = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
SHAPE = (2, 3, 4, 4)


def rand(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("amounts", [(0.6, 0.8), (1.0, 7.0), (0.3, 0.7)])
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_target_output_and_x0_agree(name, amounts) -> None:
    kind = PARAMETERISATIONS[name]
    x0, noise = rand(1), rand(2)
    x = amounts[0] * x0 + amounts[1] * noise
    target = kind.target(x0, noise, *amounts)
    assert torch.allclose(kind.x0(x, target, *amounts), x0)
    assert torch.allclose(kind.output(x, x0, *amounts), target)


def test_edm_is_the_published_preconditioning() -> None:
    """c_skip, c_out, c_in of table 1 at sigma 0.5, where they are 1/2, 0.5/sqrt(2), sqrt(2)."""
    kind = PARAMETERISATIONS["edm"]
    assert kind.x0(1.0, 0.0, 1.0, 0.5) == pytest.approx(0.5)
    assert kind.x0(0.0, 1.0, 1.0, 0.5) == pytest.approx(0.5 / math.sqrt(2))
    assert kind.scale(1.0, 0.5) == pytest.approx(math.sqrt(2))
    assert Edm().at(0.25).sigma == pytest.approx(math.e)  # the time is log(sigma) / 4


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [(SD, "noise"), (SD, "velocity"), (SD, "sample"), (Flow(), "flow"), (Edm(), "edm")],
)
def test_a_network_that_is_right_makes_the_ideal_denoiser(schedule, predicts) -> None:
    """A network built from the exact answer must give it back through scaling and formulas."""
    kind = PARAMETERISATIONS[predicts]

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        level = schedule.at(float(time[0].double()))
        x = x / kind.scale(level.alpha, level.sigma)
        return kind.output(x, gaussian(x, level), level.alpha, level.sigma)

    denoise = denoiser(network, schedule, predicts)
    level = schedule.at(round(0.4 * schedule.noisiest, 2) if predicts == "edm" else 400)
    assert torch.allclose(denoise(rand(), level), gaussian(rand(), level), rtol=1e-4)


def test_a_level_between_levels_is_looked_up() -> None:
    """Without a time: the schedule's own time, and x at the schedule's own scale."""
    seen = []

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append((x, float(time[0])))
        return torch.zeros_like(x)

    own = SD.at(321)
    denoise = denoiser(network, SD, "sample")
    denoise(rand() * 3, Level(own.alpha * 3, own.sigma * 3))
    x, time = seen[0]
    assert torch.allclose(x, rand())
    assert time == pytest.approx(321, abs=1e-3)


def test_noise_prediction_from_pure_noise_is_refused() -> None:
    table = Discrete(tuple(zero_terminal(betas("linear"))))
    with pytest.raises(ValueError, match="velocity"):
        denoiser(lambda x, t: x, table, "noise")
    with pytest.raises(ValueError, match="no parameterisation"):
        parameterisation("epsilon", SD)  # type: ignore[arg-type]
    assert parameterisation("velocity", table)


def test_a_learned_variance_is_read_from_the_second_half() -> None:
    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, 0.5)], 1)

    level = SD.at(500)
    x0, v = variance_denoiser(network, SD)(rand(), level)
    assert torch.allclose(x0, rand() / level.alpha)
    assert torch.equal(v, torch.full_like(v, 0.75))
    x0, v = variance_denoiser(network, SD, "velocity")(rand(), level)
    assert torch.allclose(x0, rand() * level.alpha)
    assert torch.equal(v, torch.full_like(v, 0.75))


def test_a_consistency_model_keeps_a_clean_picture() -> None:
    bounded = consistency(lambda x, level: torch.zeros_like(x))
    assert torch.equal(bounded(rand(), Level(1.0, 0.0, 0.0)), rand())
    assert bounded(rand(), Level(0.5, 0.8, 900.0)).abs().max() < 1e-5


def test_dynamic_thresholding_scales_what_exceeds_one() -> None:
    """arXiv:2205.11487, section 2.3, with numpy's quantile; each picture has its own."""
    x0 = torch.stack([torch.linspace(-1, 3, 12), torch.linspace(-0.4, 0.9, 12)]).view(2, 3, 2, 2)
    for share, most in ((0.9, 10.0), (0.9, 1.5), (0.5, 10.0)):
        limited = threshold_x0(x0, share, most)
        bound = np.clip(np.quantile(x0[0].abs().numpy(), share), 1, most)
        assert torch.allclose(limited[0], x0[0].clamp(-bound, bound) / bound)
        assert torch.equal(limited[1], x0[1])


def two_means(x: torch.Tensor, level: Level, cond: dict[str, torch.Tensor]) -> torch.Tensor:
    """The exact denoiser of N(mean, 1), the mean given."""
    mean = cond["mean"].view(-1, 1, 1, 1)
    variance = level.alpha**2 + level.sigma**2
    return mean + level.alpha / variance * (x - level.alpha * mean)


def test_guidance_has_its_analytic_answer() -> None:
    """For N(m, 1) against N(u, 1) guidance is the denoiser of N(u + scale (m - u), 1)."""
    cond, uncond = {"mean": torch.full((2,), 1.0)}, {"mean": torch.full((2,), -0.5)}
    guided = classifier_free(two_means, cond, uncond, 3.0)
    shifted_mean = {"mean": torch.full((2,), -0.5 + 3.0 * 1.5)}
    for level in even(4):
        exact = two_means(rand(), level, shifted_mean)
        assert torch.allclose(guided(rand(), level), exact)
    *_, last = euler(guided, rand(), even(60, 80.0, 0.01))
    assert float(last.x.mean()) == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_composed_conditions_have_their_analytic_answer(scale) -> None:
    """N(u + scale sum_i w_i (m_i - u), 1); without any, and outside the interval at scale 1."""
    means, weights, away = (1.0, 2.0, -4.0), (1.0, 0.5, -0.25), -0.5
    told = [({"mean": torch.full((2,), mean)}, w) for mean, w in zip(means, weights, strict=True)]
    uncond = {"mean": torch.full((2,), away)}
    change = sum(w * (mean - away) for mean, w in zip(means, weights, strict=True))
    levels = even(4)
    within = (levels[2].ratio, math.inf)
    guided = classifier_free(two_means, told, uncond, scale, interval=within)
    none = classifier_free(two_means, (), uncond, scale)
    rescaled = rescale_guidance(
        two_means, told, uncond, scale, 1.0, PARAMETERISATIONS["noise"], interval=within
    )
    for level in levels:
        used = scale if level.ratio > within[0] else 1.0
        exact = two_means(rand(), level, {"mean": torch.full((2,), away + used * change)})
        assert torch.allclose(guided(rand(), level), exact, atol=1e-5)
        assert torch.allclose(none(rand(), level), two_means(rand(), level, uncond))
        # these outputs differ by a constant, which has no contrast
        assert torch.allclose(rescaled(rand(), level), exact, atol=1e-4)
    single = classifier_free(two_means, told[:1], uncond, scale)(rand(), levels[0])
    assert torch.equal(
        single, classifier_free(two_means, told[0][0], uncond, scale)(rand(), levels[0])
    )


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_is_the_published_step(scale) -> None:
    """Noise of the unconditional answer, x0 of the guided one: written out beside DDIM."""
    cond, uncond = {"mean": torch.full((2,), 1.0)}, {"mean": torch.full((2,), -0.5)}
    levels = [Level(0.0, 1.0), *even(12), Level(1.0, 0.0)]  # pure noise to the clean picture
    guided = cfg_plus_plus(two_means, cond, uncond, scale, levels)
    x = rand().double()
    for (level, following), step in zip(
        pairwise(levels), euler(guided, rand().double(), levels), strict=True
    ):
        away, towards = (two_means(x, level, told) for told in (uncond, cond))
        noise = (x - level.alpha * away) / level.sigma
        x = following.alpha * (away + scale * (towards - away)) + following.sigma * noise
        assert (step.x - x).abs().max() < 1e-6
    with pytest.raises(ValueError, match="needs the sampler euler"):
        guided(x, Level(0.6, 0.8))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_variance_of_guided_pictures_is_the_conditions_own(scale) -> None:
    def network(x, time, inputs):
        told = inputs["mean"].view(-1, 1, 1, 1)
        return torch.cat([told * x, (told * x).tanh()], dim=1)

    cond, uncond = {"mean": torch.full((2,), 1.0)}, {"mean": torch.full((2,), -0.5)}
    level = SD.at(500)
    plain, away = (
        variance_denoiser(lambda x, time, c=c: network(x, time, c), SD)(rand(), level)
        for c in (cond, uncond)
    )
    x0, variance = guide_with_variance(network, SD, cond, uncond, scale)(rand(), level)
    torch.testing.assert_close(x0, away[0] + scale * (plain[0] - away[0]))
    torch.testing.assert_close(variance, plain[1])


def test_guidance_of_one_costs_one_pass_and_an_interval_saves_passes() -> None:
    sizes = []

    def counted(x: torch.Tensor, level: Level, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(len(x))
        return two_means(x, level, cond)

    cond, uncond = {"mean": torch.ones(2)}, {"mean": torch.zeros(2)}
    list(euler(classifier_free(counted, cond, uncond, 1.0), rand(), even(5)))
    assert sizes == [2] * 5
    sizes.clear()
    levels = even(5)
    interval = (levels[3].ratio, levels[1].ratio)
    list(euler(classifier_free(counted, cond, uncond, 4.0, interval=interval), rand(), levels))
    assert sizes == [2, 4, 4, 2, 2]
    with pytest.raises(ValueError, match="must be the same"):
        classifier_free(counted, cond, {}, 4.0)


def test_rescaled_guidance_has_the_contrast_of_the_condition() -> None:
    """With rescale 1 the network's own output gets the conditional output's deviation."""
    kind = PARAMETERISATIONS["velocity"]
    level = SD.at(600)
    cond, uncond = {"mean": torch.rand(2) + 1}, {"mean": torch.zeros(2)}

    def sharp(x: torch.Tensor, level: Level, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        return two_means(x, level, cond) * cond["mean"].view(-1, 1, 1, 1)

    x = rand()
    wanted = kind.output(x, sharp(x, level, cond), level.alpha, level.sigma)
    plain = classifier_free(sharp, cond, uncond, 6.0)(x, level)
    plain_output = kind.output(x, plain, level.alpha, level.sigma)
    for rescale in (1.0, 0.4):
        x0 = rescale_guidance(sharp, cond, uncond, 6.0, rescale, kind)(x, level)
        output = kind.output(x, x0, level.alpha, level.sigma)
        factor = wanted.flatten(1).std(1) / plain_output.flatten(1).std(1)
        factor = rescale * factor + 1 - rescale
        assert torch.allclose(output, plain_output * factor.view(-1, 1, 1, 1))
    same = rescale_guidance(sharp, cond, uncond, 6.0, 0.0, kind)(x, level)
    assert torch.equal(same, plain)
    with pytest.raises(ValueError, match="share"):
        rescale_guidance(sharp, cond, uncond, 6.0, 1.5, kind)


def test_clipped_keeps_x0_in_the_range_of_pictures() -> None:
    assert clip_x0(lambda x, _: 9 * x)(rand(), even(3)[1]).abs().max() == 1


def test_inpainting_keeps_what_is_known_to_the_bit() -> None:
    known, noise = rand(5), rand(6)
    paint = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    paint[..., 1:3, 2:] = True
    levels = [*even(6), Level(1.0, 0.0)]
    for sampler in (euler, dpmpp_2m):
        *_, last = sampler(inpainting(mixture, known, paint, noise), noise.clone(), levels)
        assert torch.equal(last.x.where(~paint, known), known)
        assert not torch.equal(last.x, known)
    *_, last = ancestral(
        inpainting(mixture, known, paint, noise), noise, levels, lambda *_: rand(7)
    )
    assert torch.equal(last.x.where(~paint, known), known)


def test_inpainting_equals_replacing_after_every_step() -> None:
    """The reference's way: the known part of x is put back at each level."""

    def mixing(x: torch.Tensor, level: Level) -> torch.Tensor:
        return gaussian(x + 0.3 * x.roll(1, -1), level)  # the painted part sees the known one

    known, noise = rand(5), rand(6)
    paint = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    paint[..., :2] = True
    levels = even(6)
    *_, ours = euler(inpainting(mixing, known, paint, noise), noise, levels)
    x = noise
    for level, following in pairwise(levels):
        x = x.where(paint, add_noise(known, noise, level))
        x = advance(x, mixing(x, level), level, following)
    assert torch.allclose(ours.x[..., :2], x[..., :2])


def test_a_strength_leaves_the_last_part_of_the_way() -> None:
    levels = [*even(9), Level(1.0, 0.0)]  # ten steps
    assert start_at(levels, 1.0) == levels
    assert start_at(levels, 0.35) == levels[-4:]
    for wrong in (0.0, 1.2, 0.05):
        with pytest.raises(ValueError, match="strength"):
            start_at(levels, wrong)

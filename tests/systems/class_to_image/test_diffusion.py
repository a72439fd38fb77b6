"""What a seed promises of a diffusion model, for every sampler (docs/architecture.md)."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from triptych.diffusion.names import SAMPLERS, SPACINGS, parse_sampler
from triptych.diffusion.sampling import DETERMINISTIC, STOCHASTIC
from triptych.requests import ClassToImage
from triptych.running import run
from triptych.systems.class_to_image.pipeline import sample_diffusion
from triptych.systems.pixel_diffusion.model import PixelDiffusion, PixelDiffusionConfig
from triptych.weights.loaded import Card, Loaded

EVERY = sorted({*DETERMINISTIC, *STOCHASTIC})
ALONE = [name for name, record in SAMPLERS.items() if not record.batched]
ONE_OF_A_KIND = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_sde")
STEPS = {"restart": 20}
"""Where the model's own few steps leave out what is special about a sampler."""


def loaded(**changes) -> Loaded:
    torch.manual_seed(0)
    config = PixelDiffusionConfig(
        8, 8, 1, "label", 4, widths=(16, 16), head_width=8, attention=(1,), time_width=16,
        groups=4, steps=6, **changes,
    )  # fmt: skip
    model = PixelDiffusion(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    card = Card("pixel-diffusion", asdict(config), classes=("cat", "dog", "fox", "owl"))
    return Loaded("run", card, config, model.eval())


def final(model: Loaded, seeds: list[int], **fields) -> torch.Tensor:
    labels = torch.tensor([seed % 4 for seed in seeds])
    *_, (share, last) = sample_diffusion(ClassToImage(**fields), model, labels, seeds)
    assert share == 1
    return last.x


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 20 * math.log10(2 / max(float((a - b).square().mean().sqrt()), 1e-12))


def test_every_name_is_a_sampler_and_every_sampler_has_a_name() -> None:
    assert set(SAMPLERS) == set(EVERY)
    for record in SAMPLERS.values():
        assert (record.name in DETERMINISTIC) == (record.noise in ("none", "optional"))
        assert (record.name in STOCHASTIC) == (record.noise != "none")


@pytest.mark.parametrize("source", ["cpu", pytest.param("philox", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ALONE])
def test_a_picture_is_the_same_in_any_company(name, source) -> None:
    """Noise to the bit, pixels to 60 dB (45 for samplers that add noise), in float32."""
    model = loaded()
    settings = {"sampler": name, "noise_source": source, "steps": STEPS.get(name, 0)}
    together = final(model, [3, 4, 5], **settings)
    turned = final(model, [5, 3], **settings)
    floor = 60 if name in DETERMINISTIC else 45
    for row, seed in ((0, 3), (2, 5)):
        alone = final(model, [seed], **settings)[0]
        assert psnr(together[row], alone) >= floor
    assert psnr(together[[2, 0]], turned) >= floor
    assert psnr(together[0], together[1]) < 40  # another seed is another picture


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_OF_A_KIND else pytest.mark.slow)
        for name in EVERY
        if name not in ALONE
    ],
)
def test_deterministic_pictures_are_equal_to_the_bit(name) -> None:
    model = loaded()

    def pictures(n: int, seed: int) -> np.ndarray:
        request = ClassToImage(
            label="fox", n=n, seed=seed, sampler=name, deterministic=True, steps=STEPS.get(name, 0)
        )
        *_, result = run(request, model)
        return result.pictures

    two = pictures(2, 7)
    for i in range(2):
        assert np.array_equal(two[i], pictures(1, 7 + i)[0])


@pytest.mark.parametrize("name", ALONE)
def test_a_sampler_that_finds_its_own_steps_draws_one_at_a_time(name) -> None:
    model, shares = loaded(), []

    def pictures(n: int, seed: int, **fields) -> np.ndarray:
        request = ClassToImage(label="fox", n=n, seed=seed, sampler=name, **fields)
        for result in run(request, model):
            shares.append(result.done)
        return result.pictures

    for more in ({"deterministic": True}, {"eta": 1.0}):
        shares.clear()
        two = pictures(2, 7, **more)
        assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 9
        for i in range(2):
            assert np.array_equal(two[i], pictures(1, 7 + i, **more)[0])
    with pytest.raises(ValueError, match="takes one at a time, not 2"):
        list(sample_diffusion(ClassToImage(sampler=name), model, torch.tensor([0, 1]), [1, 2]))


def test_more_steps_refine_a_picture_of_dpmpp_sde() -> None:
    """Its noise is one Brownian path: finer steps come closer to one another, not elsewhere."""
    model = loaded()
    drawn = {n: final(model, [1, 2, 3], sampler="dpmpp_sde", steps=n) for n in (8, 24, 48)}
    near = (drawn[24] - drawn[48]).square().mean()
    far = (drawn[8] - drawn[48]).square().mean()
    other = (drawn[48] - final(model, [4, 5, 6], sampler="dpmpp_sde", steps=24)).square().mean()
    assert near < far < other


def test_progress_reaches_one_and_pictures_are_complete() -> None:
    model = loaded()
    reports = list(run(ClassToImage(n=70, seed=0, steps=2), model))
    shares = [report.done for report in reports]
    assert shares == sorted(shares) and shares[-1] == 1
    assert len(reports[-1].pictures) == len(reports[-1].names) == 70
    assert len(reports[0].pictures) == 0


def test_grad_mode_is_the_callers_between_steps() -> None:
    model = loaded()
    for _ in sample_diffusion(ClassToImage(), model, torch.tensor([0]), [1]):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"truncation": 1.0}, "--truncation cannot be used"),
        ({"attributes": ("red",)}, "--attributes cannot be used"),
        ({"sampler": "euler", "eta": 0.5}, "no eta"),
        ({"spacing": "leading"}, "no leading spacing"),
        ({"label": "cow"}, "no class"),
    ],
)
def test_what_the_model_cannot_use_is_said(fields, words) -> None:
    with pytest.raises(ValueError, match=words):
        list(run(ClassToImage(seed=0, n=1, **fields), loaded()))


def test_other_models_refuse_what_only_diffusion_uses() -> None:
    from tests.systems.class_to_image.test_pipeline import loaded as other

    for field, value in (("guidance", 2.0), ("steps", 5), ("sampler", "euler"), ("eta", 1.0)):
        with pytest.raises(ValueError, match=f"--{field} cannot be used"):
            list(run(ClassToImage(seed=0, n=1, **{field: value}), other()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Heun Exponential", ("dpmpp_2m_sde_heun", "exponential")),
        ("euler a", ("euler_ancestral", "")),
        ("  Euler   A  ", ("euler_ancestral", "")),
        ("EulerAncestralDiscreteScheduler", ("euler_ancestral", "")),
        ("DPM++ SDE Karras", ("dpmpp_sde", "karras")),
        ("LMS Karras", ("lms", "karras")),
        ("Euler SGM Uniform", ("euler", "sgm_uniform")),
        ("PLMS", ("plms", "")),
        ("lcm", ("lcm", "")),
    ],
)
def test_samplers_are_known_by_all_their_names(text, expected) -> None:
    assert parse_sampler(text) == expected
    name, spacing = expected
    assert name in SAMPLERS and (not spacing or spacing in SPACINGS)


def test_an_unknown_sampler_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'dpm\\+\\+ 2m'"):
        parse_sampler("DPM+ 2M")

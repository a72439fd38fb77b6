"""Encoding of conditions, the objective, and sampling."""

import dataclasses

import pytest
import torch

from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.schedule import Discrete, Edm, Flow
from triptych.systems.pixel_diffusion.model import (
    PixelDiffusion,
    PixelDiffusionConfig,
    build_schedule,
    objective,
    sample,
    sampling_levels,
)

SMALL = PixelDiffusionConfig(
    8, 8, 1, "label", 4, widths=(8, 8), attention=(1,), head_width=8, time_width=16, groups=4
)


def model(**changes) -> PixelDiffusion:
    """Random weights everywhere: a fresh U-Net answers zero to everything."""
    torch.manual_seed(0)
    made = PixelDiffusion(dataclasses.replace(SMALL, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made.eval()


def test_a_label_is_encoded_as_one_hot_and_its_absence_as_the_last_number() -> None:
    made = model()
    vector = made.encode_condition(torch.tensor([2, 0]), 2)["vector"]
    assert vector.tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert made.encode_condition(None, 2)["vector"].tolist() == [[0, 0, 0, 0, 1]] * 2
    dropped = made.encode_condition(torch.tensor([2, 0]), 2, torch.tensor([False, True]))["vector"]
    assert dropped.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]


def test_attributes_and_numbers_are_encoded_as_they_are() -> None:
    made = model(condition="attributes", condition_size=3)
    assert made.encode_condition(torch.tensor([[1.0, 0, 1]]), 1)["vector"].tolist() == [
        [1, 0, 1, 0]
    ]
    with pytest.raises(ValueError, match="must have shape"):
        made.encode_condition(torch.zeros(1, 2), 1)
    assert model(condition="none", condition_size=0).encode_condition(None, 3) == {}
    with pytest.raises(ValueError, match="unconditional"):
        model(condition="none", condition_size=0).encode_condition(torch.zeros(1), 1)


def test_a_condition_that_is_always_dropped_changes_nothing() -> None:
    made = model()
    image = torch.rand(6, 1, 8, 8) * 2 - 1

    def loss(labels: list[int], drop: float) -> float:
        torch.manual_seed(5)
        return float(objective(made, image, torch.tensor(labels), drop=drop).total.detach())

    first, second = [0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]
    assert loss(first, 1.0) == loss(second, 1.0)
    assert loss(first, 0.0) != loss(second, 0.0)


def test_the_share_that_is_dropped_is_the_one_asked_for() -> None:
    made = model()
    seen = []
    made.predict = lambda x, time, cond: seen.append(cond["vector"]) or x  # type: ignore[method-assign]
    torch.manual_seed(0)
    for _ in range(20):
        objective(made, torch.zeros(100, 1, 8, 8), torch.zeros(100, dtype=torch.long), drop=0.2)
    assert float(torch.cat(seen)[:, -1].mean()) == pytest.approx(0.2, abs=0.03)


def test_schedules_are_those_that_are_named() -> None:
    def named(**changes) -> object:
        return build_schedule(dataclasses.replace(SMALL, **changes))

    assert isinstance(named(), Flow) and named(shift=2.0) == Flow(2.0)
    assert isinstance(named(schedule="edm", predicts="edm", spacing="karras"), Edm)
    cosine = named(schedule="cosine", predicts="velocity", zero_terminal_snr=True)
    assert isinstance(cosine, Discrete) and cosine.at(999).alpha == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "cosine", "predicts": "velocity"},
        {"schedule": "linear", "predicts": "noise", "spacing": "leading"},
        {"schedule": "linear", "predicts": "velocity", "zero_terminal_snr": True},
        {"schedule": "edm", "predicts": "edm", "spacing": "karras"},
        {"predicts": "sample", "shift": 3.0},
        {"patch": 2},
    ],
)
def test_every_kind_samples_finite_pictures_in_range(changes) -> None:
    made = model(**changes)
    with torch.inference_mode():
        *_, last = sample(made, torch.tensor([0, 1]), PictureNoise([1, 2]), steps=4)
    assert last.x.shape == (2, 1, 8, 8)
    assert last.x.isfinite().all() and last.x.abs().max() <= 1 + 1e-6
    assert not torch.equal(last.x[0], last.x[1])


def test_guidance_extrapolates_the_networks_own_answers() -> None:
    made = model(clip=False)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    level = sampling_levels(made, 4)[1]
    labels = torch.tensor([1, 2])
    with torch.inference_mode():
        plain = made.denoiser(labels, 2, 1.0)(x, level)
        free = made.denoiser(None, 2)(x, level)
        guided = made.denoiser(labels, 2, 3.0)(x, level)
    assert torch.allclose(guided, free + 3 * (plain - free), atol=1e-4)
    assert not torch.allclose(plain, free)


def test_guidance_needs_a_model_that_was_trained_for_it() -> None:
    made = model(dropped=0.0, guidance=1.0)
    sample(made, torch.tensor([0]), PictureNoise([1]))
    with pytest.raises(ValueError, match="drop 0"):
        sample(made, torch.tensor([0]), PictureNoise([1]), guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 0}, "at least 1"),
        ({"condition_size": 0}, "condition_size"),
        ({"zero_terminal_snr": True}, "schedules of betas"),
        ({"schedule": "edm"}, "go together"),
        ({"schedule": "edm", "predicts": "edm"}, "karras"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_noise_prediction_cannot_start_from_pure_noise() -> None:
    with pytest.raises(ValueError, match="Predict velocity"):
        model(predicts="noise")

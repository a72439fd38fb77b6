"""One step of training and one drawing on an accelerator are those of the CPU, within rounding.

Run by `pytest -m gpu` on a machine that has one; elsewhere they are left out.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.systems.class_to_image.test_diffusion import final, loaded, psnr
from triptych import runtime
from triptych.requests import TrainClassifier, Training
from triptych.train.loop import fit
from triptych.training import build

pytestmark = pytest.mark.gpu


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The accelerator, computing in float32: cuDNN's TensorFloat32 keeps ten bits of a number."""
    device = runtime.device()
    if device.type == "cpu":
        pytest.skip("there is no accelerator")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield str(device)


def step(device: str, run: Path) -> tuple[dict[str, float], torch.Tensor]:
    """Loss terms and all weights after one step: of a model that draws no noise in training, since
    each device draws its own.
    """
    training = Training(steps=1, batch_size=32, device=device, ema_halflife=0, sample_every=0)
    recipe = replace(build(TrainClassifier(training, widths=(8, 16))), sample=None, evaluate=None)
    (report,) = fit(recipe, training, run)
    weights = [p.detach().flatten().cpu() for p in recipe.model.parameters()]
    return report.terms, torch.cat(weights)


def test_a_training_step(accelerator: str, tmp_path: Path) -> None:
    """The first update of Adam has the size of the learning rate, whatever the gradient's: where a
    gradient is rounding error, its sign is too. So all but one weight of a hundred must agree.
    """
    terms, weights = step("cpu", tmp_path / "cpu")
    theirs, moved = step(accelerator, tmp_path / "accelerator")
    for name in ("loss", "norm"):
        assert theirs[name] == pytest.approx(terms[name], rel=1e-4)
    assert ((weights - moved).abs() < 1e-4).float().mean() > 0.99


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_a_drawing(accelerator: str, sampler: str) -> None:
    """Noise comes from the CPU for every device, so only rounding differs."""
    here = loaded()
    there = replace(here, model=loaded().model.to(accelerator))
    settings = {"sampler": sampler, "precision": "float32"}
    pictures = [final(model, [3, 4], **settings).cpu() for model in (here, there)]
    assert psnr(*pictures) > 50

"""What an upsampler predicts and draws is what its loss compares and what its sampler reads."""

import pytest
import torch

from triptych.diffusion.noise import PictureNoise
from triptych.systems.unclip.upsampler import (
    Upsampler,
    UpsamplerConfig,
    enlarge,
    objective,
    sample,
    shrink,
)

PICTURE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
SMALL = shrink(PICTURE, 2)
ENLARGED = enlarge(SMALL, 8)


def exact(predicts: str, draws: str) -> Upsampler:
    """An upsampler that knows the picture, and tells from what it is given what was added."""
    sizes = {"widths": (8, 8), "blocks": 1, "time_width": 8, "groups": 4, "sampler": "ddim"}
    model = Upsampler(UpsamplerConfig(4, 8, predicts=predicts, draws=draws, **sizes))
    drawn = PICTURE if draws == "picture" else 8.0 * (PICTURE - ENLARGED)

    def predict(x, time):  # type: ignore[no-untyped-def]
        torch.testing.assert_close(x[:, 3:], ENLARGED)
        signal = model.schedule.signal[time.long()].to(x.dtype).view(-1, 1, 1, 1)
        noise = (x[:, :3] - signal.sqrt() * drawn) / (1 - signal).sqrt()
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * drawn
        return {"noise": noise, "velocity": velocity}[predicts]

    model.unet.forward = predict  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("draws", ["picture", "difference"])
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_an_exact_prediction_has_no_error_and_gives_the_picture(predicts: str, draws: str) -> None:
    model = exact(predicts, draws)
    torch.manual_seed(0)
    assert float(objective(model, PICTURE, ENLARGED).terms["mse"]) < 1e-6
    for step in sample(model, SMALL, PictureNoise(range(2)), steps=5):
        # where alpha is 5e-5 rounding of the noise is seen in x0
        torch.testing.assert_close(step.x0, PICTURE, atol=0.02, rtol=0)
    torch.testing.assert_close(step.x, PICTURE, atol=1e-4, rtol=0)

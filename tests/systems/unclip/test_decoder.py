"""What a decoder predicts is what its loss compares and what its sampler reads."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.systems.unclip.tiny_unclip import DECODER
from triptych.systems.unclip.decoder import Decoder, DecoderConfig, denoiser, objective
from triptych.systems.unclip.prior import COSINE

PICTURE = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
NOISE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exact(predicts: str) -> SimpleNamespace:
    """A decoder that knows the picture, and the noise that was added to it."""

    def predict(x, time, cond):  # type: ignore[no-untyped-def]
        signal = COSINE.signal[time.long()].to(x.dtype).view(-1, 1, 1, 1)
        velocity = signal.sqrt() * NOISE - (1 - signal).sqrt() * PICTURE
        output = {"noise": NOISE, "velocity": velocity}[predicts]
        return torch.cat([output, torch.zeros_like(x)], 1)

    return SimpleNamespace(predict=predict, config=DecoderConfig(predicts=predicts, guidance=1.0))


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_an_exact_prediction_has_no_error_and_gives_the_picture(predicts: str) -> None:
    model = exact(predicts)
    time = torch.tensor([10.0, 200.0, 500.0, 900.0])
    loss = objective(model, PICTURE, {}, noise=NOISE, time=time)
    assert float(loss.terms["mse"]) < 1e-10
    for t in (10, 500, 900):
        level = COSINE.at(t)
        x0, _ = denoiser(model, {}, {}, None)(level.alpha * PICTURE + level.sigma * NOISE, level)
        torch.testing.assert_close(x0, PICTURE, atol=1e-4, rtol=0)


def test_embeddings_are_read_at_their_scale() -> None:
    """Also those of texts; the learned embedding of no picture has its own."""
    torch.manual_seed(0)
    model = Decoder(replace(DECODER, embedding_scale=3.0))
    torch.nn.init.normal_(model.null_image)
    image, text, states = torch.randn(2, 8), torch.randn(2, 8), torch.randn(2, 5, 16)
    mask, dropped = torch.ones(2, 5, dtype=torch.bool), torch.tensor([False, True])
    told = model.encode_condition(image, text, states, mask, dropped)
    read = torch.stack([3 * image[0], model.null_image])
    torch.testing.assert_close(told["added"], model.image_proj(read) + model.text_proj(3 * text))
    tokens = model.token_proj(read).view(2, 12, 2).transpose(1, 2)
    torch.testing.assert_close(told["context"][:, :2], tokens)
    whole = model.encode_condition(image, text, states, mask)
    torch.testing.assert_close(whole["added"][:1], told["added"][:1])
    none = model.encode_condition(None, text, states, mask)
    torch.testing.assert_close(none["added"][1:], told["added"][1:])

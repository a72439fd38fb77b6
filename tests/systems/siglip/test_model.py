"""SigLIP at its start, as published."""

import math

import torch

from triptych.systems.siglip.model import (
    Siglip,
    SiglipConfig,
    SiglipImageConfig,
    SiglipTextConfig,
    objective,
)


def test_it_starts_by_saying_no_to_every_pair() -> None:
    """Temperature 10 and bias -10 (arXiv:2303.15343, section 3.2): most pairs are negatives."""
    torch.manual_seed(0)
    config = SiglipConfig(
        SiglipImageConfig(16, 8, 32, 1, 2, 32), SiglipTextConfig(50, 8, 32, 1, 2, 32)
    )
    model = Siglip(config)
    pixels, tokens = torch.randn(6, 3, 16, 16), torch.randint(50, (6, 8))
    image, text = model.embed_image(pixels), model.embed_text(tokens)
    cosines = (image.double() @ text.double().T).tolist()
    cost = 0.0
    for i, row in enumerate(cosines):
        for j, cosine in enumerate(row):
            logit = 10 * cosine - 10
            cost += math.log1p(math.exp(-logit if i == j else logit))
    loss = objective(model, pixels, tokens)
    torch.testing.assert_close(loss.total.item(), cost, rtol=1e-4, atol=0)
    assert cost / 6 > 5  # the six positives alone: about 10 each where nothing is learned

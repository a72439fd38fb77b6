"""Pictures in the order of their cosine with a text."""

import numpy as np
import pytest
import torch

from tests.systems.clip.tiny_clip import picture, tiny_clip
from triptych.systems.two_towers.clip_score import clip_score
from triptych.systems.two_towers.pipeline import rerank

CLIP = tiny_clip()


def test_the_order_is_that_of_clip_score_and_of_the_logits() -> None:
    pictures = [picture(seed) for seed in range(12)]
    order, scores = rerank(pictures, "two cats", CLIP)
    image, text = CLIP.embed_image(pictures), CLIP.embed_text(["two cats"])
    logits = CLIP.model.logits(image, text)[:, 0]
    assert list(order) == logits.argsort(descending=True).tolist()
    assert np.allclose(scores, (image @ text.T)[:, 0].numpy(), atol=1e-6)
    scored = clip_score(image, text.expand(12, -1))[list(order)]
    assert bool((scored.diff() <= 0).all())


def test_equal_pictures_keep_their_order_and_grey_ones_are_read() -> None:
    grey = np.full((20, 20, 1), 90, np.uint8)
    order, scores = rerank([grey, picture(1), grey, grey], "two cats", CLIP)
    assert [n for n in order if n != 1] == [0, 2, 3]
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)


def test_a_sick_model_orders_nothing() -> None:
    sick = tiny_clip()
    with torch.no_grad():
        sick.model.image.projection.weight[0, 0] = torch.nan  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="no finite vector"):
        rerank([picture(0)], "two cats", sick)

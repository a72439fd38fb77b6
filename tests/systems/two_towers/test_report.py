"""Two towers on held-out pictures: what is reported is what the vectors say."""

import numpy as np
import pytest
import torch

from tests.systems.clip.tiny_clip import tiny_clip
from triptych.data.disk.arrays import Part, array_index
from triptych.data.disk.table import select_split
from triptych.data.source import Columns, SourceInfo
from triptych.systems.two_towers.report import evaluate_two_towers


def of_classes(side, count=30):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    parts = [Part(split, images, np.arange(count) % 3) for split in ("train", "test")]
    index = array_index("three", "arrays", parts, ("red", "blue", "star"))
    return images, select_split(index, "test", None, None)


class Captioned:
    """A source of pictures with one caption each."""

    def __init__(self, images, texts):
        self.images, self.texts = images, texts
        self.info = SourceInfo("captions", "test", None, images.shape[1:], has_captions=True)

    def read(self, indices) -> Columns:
        rows = list(indices)
        return {"image": self.images[rows], "caption": [self.texts[i] for i in rows]}


def test_zero_shot_accuracy_over_the_classes_of_the_source():
    loaded = tiny_clip()
    images, test = of_classes(loaded.config.size)
    report = evaluate_two_towers(loaded, test, ("a {}.",), limit=20)
    texts = loaded.embed_text(["a red.", "a blue.", "a star."])
    right = (loaded.embed_image(list(images[:20])) @ texts.T).argmax(1) == torch.arange(20) % 3
    assert report.recall is None and report.zero_shot is not None
    assert report.zero_shot.value == pytest.approx(right.float().mean().item())
    assert report.zero_shot.count == report.pictures == 20


def test_recall_of_captions():
    loaded = tiny_clip()
    images, _ = of_classes(loaded.config.size, 12)
    words = ("one", "two", "three", "four", "five", "six", "seven", "red", "blue", "star", "a", "b")
    texts = [f"picture of {word}" for word in words]
    report = evaluate_two_towers(loaded, Captioned(images, texts), ("{}",), limit=12)
    scores = loaded.embed_text(texts) @ loaded.embed_image(list(images)).T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    assert report.zero_shot is None and report.recall is not None
    assert report.recall.text_to_image.at[5] == pytest.approx((rank < 5).float().mean().item())
    assert report.recall.text_to_image.queries == 12


def test_a_source_that_says_nothing_is_refused():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    parts = [Part(split, images, None) for split in ("train", "test")]
    bare = select_split(array_index("bare", "arrays", parts), "test", None, None)
    with pytest.raises(ValueError, match="neither captions nor classes"):
        evaluate_two_towers(tiny_clip(), bare, ("{}",))

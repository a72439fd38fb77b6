"""What is measured while two towers are trained, against counting by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.systems.clip.tiny_clip import tiny_clip
from triptych.data.disk.arrays import Part, array_index
from triptych.data.disk.table import select_split
from triptych.systems.two_towers.matching import caption_recall, embed_classes, held_out_matches


def test_recall_counts_equal_texts_as_one():
    torch.manual_seed(0)
    pictures, vectors = (F.normalize(torch.randn(40, 6), dim=1) for _ in range(2))
    texts = [f"text {i % 30}" for i in range(40)]  # ten texts stand there twice
    vectors = torch.stack([vectors[i % 30] for i in range(40)])
    row = caption_recall(pictures, vectors, texts)
    for k in (1, 5, 10):
        hits = 0
        for i in range(40):
            best = (pictures[i] @ vectors.T).tolist()
            right = max(best[j] for j in range(40) if texts[j] == texts[i])
            ahead = sum(b > right for j, b in enumerate(best) if texts[j] != texts[i])
            hits += ahead < k
        assert row[f"text_recall_{k}"] == pytest.approx(hits / 40)
    assert row["recall_by_chance"] == pytest.approx((20 * 2 + 20) / 1600)


def test_perfect_and_blind_towers():
    basis = torch.eye(12)
    texts = [str(i) for i in range(12)]
    perfect = caption_recall(basis, basis, texts)
    assert perfect["text_recall_1"] == perfect["image_recall_1"] == 1
    turned = caption_recall(basis, basis.roll(1, 0), texts)
    assert turned["text_recall_1"] == 0


def test_a_model_is_measured_on_held_out_pictures():
    loaded = tiny_clip()
    size = loaded.config.size
    images = np.random.default_rng(0).integers(0, 256, (24, size, size, 1), np.uint8)
    parts = [Part(split, images, np.arange(24) % 4) for split in ("train", "test")]
    index = array_index("four", "arrays", parts, ("red", "blue", "green_one", "star"))
    test = select_split(index, "test", None, None)
    cpu = torch.device("cpu")
    assert loaded.tokenizer is not None
    measure = held_out_matches(test, loaded.tokenizer, loaded.transform, ("a {}.", "the {}"), cpu)
    row = measure(loaded.model)
    named = embed_classes(
        loaded.model, loaded.tokenizer, test.info.classes, ("a {}.", "the {}"), cpu
    )
    by_hand = torch.stack([loaded.embed_text([f"a {n}.", f"the {n}"]).mean(0)
                           for n in ("red", "blue", "green one", "star")])  # fmt: skip
    torch.testing.assert_close(named, F.normalize(by_hand, dim=1), atol=1e-5, rtol=1e-4)
    pictures = loaded.embed_image(list(images))
    right = (pictures @ named.T).argmax(1) == torch.arange(24) % 4
    assert row == {"zero_shot": pytest.approx(right.float().mean().item()), "by_chance": 0.25}

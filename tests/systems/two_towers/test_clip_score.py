"""CLIP score: its formula, its floor, and real CLIP vectors of photographs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.systems.clip.tiny_clip import picture, tiny_clip
from triptych.systems.two_towers import clip_score as module
from triptych.systems.two_towers.clip_score import alignment, clip_score, evaluate


def turned(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_the_score_is_the_published_formula() -> None:
    """w max(cos, 0) with w = 2.5: by angles of 0, 60, 90 and 180 degrees."""
    scores = clip_score(turned(0, 60, 90, 180), turned(0, 0, 0, 0))
    assert scores.tolist() == pytest.approx([2.5, 1.25, 0, 0], abs=1e-6)


def test_the_floor_is_the_mean_over_all_other_texts(monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    image, text = turned(0, 10, 50, 80, 200), turned(5, 5, 70, 75, 120)
    found = alignment(image, text)
    cosines = image @ text.T
    others = [(i, j) for i in range(5) for j in range(5) if not torch.equal(text[i], text[j])]
    floor = np.mean([2.5 * max(float(cosines[i, j]), 0) for i, j in others])
    wins = np.mean([float(cosines[i, i] > cosines[i, j]) for i, j in others])
    assert found.shuffled == pytest.approx(floor) and found.preferred == pytest.approx(wins)
    scores = clip_score(image, text)
    assert found.score == pytest.approx(float(scores.mean()))
    half = 1.959964 * float(scores.std()) / math.sqrt(5)
    assert found.score - found.low == pytest.approx(half)


def test_pairs_that_belong_together_by_chance_have_no_preference() -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(400, 32), dim=1) for _ in range(2))
    found = alignment(image, text)
    assert found.preferred == pytest.approx(0.5, abs=0.05)
    assert found.shuffled == pytest.approx(found.score, abs=0.05)


def test_one_text_has_no_floor_and_nonsense_is_refused() -> None:
    found = alignment(turned(0, 10), turned(5, 5))
    assert found.shuffled is None and found.preferred is None
    with pytest.raises(ValueError, match="at least one pair"):
        alignment(turned(), turned())
    with pytest.raises(ValueError, match="pairs must be"):
        clip_score(turned(0, 1), turned(0))


def test_pictures_are_scored_with_their_own_texts() -> None:
    clip = tiny_clip()
    pictures, texts = [picture(0), picture(1)], ["two cats", "a red car"]
    expected = clip_score(clip.embed_image(pictures), clip.embed_text(texts)).mean()
    assert evaluate(pictures, texts, clip).score == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="2 pictures, but 1 prompts"):
        evaluate(pictures, texts[:1], clip)


def test_real_pictures_score_higher_with_what_they_show(real_data: Path) -> None:
    """OpenAI's ViT-B/32 on Flickr8k, with the one COCO name that stands in a picture's caption:
    cosines of 0.2 to 0.32, so scores of 0.5 to 0.8, above those of the other names.
    """
    folder = real_data / "clip_embeddings"
    rows = np.load(folder / "flickr8k_train1000_vitb32_image.npy").astype(np.float32)
    names = json.loads((folder / "coco80_names.json").read_text())
    captions = json.loads((folder / "flickr8k_train1000_rows.json").read_text())
    vectors = F.normalize(torch.from_numpy(np.load(folder / "coco80_vitb32_text.npy")).float())
    pairs = []
    for row, said in enumerate(captions):
        words = said["caption"].lower().replace(".", " ").split()
        named = [number for number, name in enumerate(names) if name in words and name != "person"]
        pairs += [(row, named[0])] if len(named) == 1 else []
    image = F.normalize(torch.from_numpy(rows))[[row for row, _ in pairs]]
    found = alignment(image, vectors[[label for _, label in pairs]])
    assert found.count > 200
    assert 0.5 < found.score < 0.8
    assert found.shuffled is not None and found.low > found.shuffled + 0.05
    assert found.preferred is not None and found.preferred > 0.9

"""Conditions as models get them, as the card keeps them, and as the grid of samples shows them."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from triptych.data.source import SourceInfo
from triptych.train.conditioning import (
    ROWS,
    SHOWN,
    Condition,
    build_card,
    choose_condition,
    prepare_grid,
)
from triptych.vision.grids import labelled_grid

NUMBERS = np.random.default_rng(0).normal(3, 2, (30, 2)).astype(np.float32)
NUMBERS[:, 1] = 7  # the same in every picture
HOLDS = (np.arange(90).reshape(30, 3) % 4 < 2).astype(np.float32)


@dataclass(frozen=True)
class Config:
    width: int = 3


class Pictures:
    """Thirty pictures with every kind of condition."""

    def __init__(self, **without):
        names = {"classes": tuple("abcdefghijkl"), "attributes": ("red", "big", "old"),
                 "vector": ("age", "height")}  # fmt: skip
        self.info = SourceInfo("thirty", "test", 30, (4, 4, 1), **names | without)

    def read(self, indices):
        rows = list(indices)
        image = np.stack([np.full((4, 4, 1), 8 * i, np.uint8) for i in rows])
        return {"image": image, "label": np.array(rows) % 12, "vector": NUMBERS[rows],
                "attributes": HOLDS[rows]}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "size"), [("none", 0), ("label", 12), ("attributes", 3), ("vector", 2)]
)
def test_the_size_is_how_many_names_there_are(kind, size):
    condition = choose_condition(kind, Pictures())
    assert (condition.kind, condition.size, condition.quadrants) == (kind, size, 0)
    assert (condition.mean is not None) == (kind == "vector")


def test_a_condition_that_the_source_lacks_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"thirty has no label .* it has: attributes, vector"):
        choose_condition("label", Pictures(classes=()))
    with pytest.raises(ValueError, match="it has: none"):
        choose_condition("vector", Pictures(classes=(), attributes=(), vector=()))
    assert choose_condition("none", Pictures(classes=(), attributes=(), vector=())).size == 0


def test_batches_give_columns_and_vectors_are_normalised_by_the_source():
    batch = {"label": torch.tensor([3, 1]), "attributes": torch.tensor(HOLDS[:2]),
             "vector": torch.tensor(NUMBERS[:2])}  # fmt: skip
    source = Pictures()
    assert choose_condition("none", source).of(batch) is None
    for kind in ("label", "attributes"):
        assert choose_condition(kind, source).of(batch) is batch[kind]
    found = choose_condition("vector", source).of(batch)
    first = (NUMBERS[:2, 0] - NUMBERS[:, 0].mean()) / NUMBERS[:, 0].std(ddof=1)
    np.testing.assert_allclose(found[:, 0], first, rtol=1e-5)
    assert found[:, 1].tolist() == [0, 0]  # not divided by the spread of 0


@pytest.mark.parametrize("visible", [1, 2, 3])
def test_quadrants_are_the_visible_pixels_and_a_mask(visible):
    image = torch.arange(1.0, 13).reshape(1, 1, 3, 4)
    found = choose_condition("quadrants", Pictures(), quadrants=visible).of({"image": image})
    mask = torch.zeros(3, 4)
    mask[1:, :2] = 1  # lower left
    mask[:1, :2] = visible > 1
    mask[:1, 2:] = visible > 2
    assert torch.equal(found[0], torch.stack([image[0, 0] * mask, mask]))


def test_the_card_names_its_own_condition_and_no_other():
    source = Pictures()
    cards = {
        kind: build_card("cvae", Config(), source, choose_condition(kind, source))
        for kind in ("none", "label", "attributes", "vector")
    }
    named = ("classes", "attributes", "vector")
    for kind, card in cards.items():
        assert card["model"] == "cvae" and card["config"] == {"width": 3}
        own = {"label": "classes"}.get(kind, kind)
        for name in named:
            assert list(card[name]) == (list(getattr(source.info, name)) if name == own else [])
    assert cards["vector"]["vector_mean"] == pytest.approx(NUMBERS.mean(0).tolist(), rel=1e-5)
    assert cards["vector"]["vector_std"] == pytest.approx([NUMBERS[:, 0].std(ddof=1), 1e-6])
    assert list(cards["label"]["vector_mean"]) == list(cards["label"]["vector_std"]) == []
    hidden = choose_condition("quadrants", source, quadrants=2)
    assert build_card("cvae", Config(), source, hidden)["quadrants"] == 2


@pytest.mark.parametrize("kind", ["label", "attributes", "vector", "none", "quadrants"])
def test_each_column_of_the_grid_is_one_condition_and_each_row_one_noise(kind):
    source = Pictures()
    condition = choose_condition(kind, source, quadrants=1)
    draw = prepare_grid(condition, source, (2, 2), 5, torch.device("cpu"))
    seen = []

    def sample(conditions, noise):
        seen.append((conditions, noise))
        level = torch.arange(len(noise)) / len(noise)  # each cell another grey
        return level[:, None, None, None].expand(-1, 1, 4, 4)

    sheet = draw(sample)
    ((conditions, noise),) = seen
    table = noise.reshape(ROWS, SHOWN, 2, 2)
    assert torch.equal(table, table[:, :1].expand_as(table))
    assert len(table[:, 0].flatten(1).unique(dim=0)) == ROWS
    first = source.read(range(SHOWN))
    names = {
        "label": list("abcdefghij"), "vector": [f"{a:.3g} 7" for a, _ in first["vector"]],
        "attributes": [", ".join(n for n, holds in zip(source.info.attributes, row, strict=True)
                       if holds) for row in first["attributes"]],
    }.get(kind, [""] * SHOWN)  # fmt: skip
    if kind == "none":
        assert conditions is None
    else:
        images = torch.from_numpy(first["image"]).permute(0, 3, 1, 2) / 127.5 - 1
        batch = {k: torch.from_numpy(v) for k, v in first.items()} | {"image": images}
        wanted = torch.arange(SHOWN) if kind == "label" else condition.of(batch)
        columns = conditions.reshape(ROWS, SHOWN, *conditions.shape[1:])
        for row in columns:
            torch.testing.assert_close(row, wanted)
    grey = ((torch.arange(ROWS * SHOWN) / (ROWS * SHOWN) + 1) * 127.5).round().byte()
    cells = grey.reshape(ROWS, SHOWN, 1, 1, 1).expand(-1, -1, 4, 4, 1).numpy()
    assert np.array_equal(sheet, labelled_grid(cells, [f"z {i}" for i in range(1, 7)], names))


def test_the_noise_of_a_grid_is_of_the_run_s_seed():
    grids = []
    for seed in (5, 5, 6):
        draw = prepare_grid(Condition("none", 0), Pictures(), (3,), seed, torch.device("cpu"))
        draw(lambda _, noise: grids.append(noise) or torch.zeros(len(noise), 1, 4, 4))
    assert torch.equal(grids[0], grids[1]) and not torch.equal(grids[0], grids[2])


@pytest.mark.parametrize("kind", ["label", "attributes"])
def test_pictures_without_classes_can_be_trained_on_in_other_ways(kind):
    captioned = Pictures(classes=(), attributes=(), vector=(), has_captions=True)
    with pytest.raises(ValueError) as refused:
        choose_condition(kind, captioned)
    text = str(refused.value)
    assert "`--condition none`" in text and "`triptych train text-to-image`" in text
    assert ("a folder for each class" in text) == (kind == "label")
    with pytest.raises(ValueError, match="a folder for each class") as refused:
        choose_condition("label", Pictures(classes=()), required=True)
    assert "--condition" not in str(refused.value) and "text-to-image" not in str(refused.value)

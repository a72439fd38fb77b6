"""Batches of similar captions: nothing is lost, all is a function of a key, words are shared."""

from itertools import chain

import numpy as np
import pytest

from triptych.data import scene_source
from triptych.data.captions import captions_of, fill_templates, texts_at
from triptych.data.disk.arrays import Part, array_index
from triptych.data.disk.table import select_split
from triptych.data.order.batches import ShuffledPlan, batches
from triptych.data.order.hard_negatives import sort_by_shared_words
from triptych.data.scene_source import SceneSource

COLOURS, SHAPES = ("red", "blue", "green", "black"), ("circle", "star", "ring")


def texts(count=96):
    draw = np.random.default_rng(0)
    return [f"a {draw.choice(COLOURS)} {draw.choice(SHAPES)}" for _ in range(count)]


def shared(batch):
    """How many words the texts of a batch have in common."""
    return len(set.intersection(*(set(text.split()) for text in batch)))


def test_an_order_is_a_permutation_and_depends_on_its_key_alone():
    captions = texts()
    order = sort_by_shared_words(captions, 7)
    assert sorted(order.tolist()) == list(range(len(captions)))
    assert (
        order.tolist()
        == sort_by_shared_words(captions, 7).tolist()
        != sort_by_shared_words(captions, 8).tolist()
    )


def test_neighbours_share_more_words_than_chance_has_them_share():
    captions = texts()
    for key in range(20):
        order = sort_by_shared_words(captions, key)
        together = [shared([captions[i] for i in order[j : j + 12]]) for j in range(0, 96, 12)]
        by_chance = [shared(captions[j : j + 12]) for j in range(0, 96, 12)]
        assert sum(together) > sum(by_chance) + 3
    assert sort_by_shared_words(["", "b", ""], 1).tolist() in ([0, 2, 1], [1, 0, 2])


def test_a_pool_holds_the_pictures_that_its_batches_would_hold_anyway():
    source = SceneSource("scenes-one", "train", 32)
    plain, sorted_ = batches(source, 16, seed=3), batches(source, 16, seed=3, hard_negative_pool=4)
    for _ in range(2):  # pools
        one = [next(plain)["caption"] for _ in range(4)]
        other = [next(sorted_)["caption"] for _ in range(4)]
        assert sorted(chain(*one)) == sorted(chain(*other))
    resumed = batches(source, 16, seed=3, hard_negative_pool=4, start=5)
    again = batches(source, 16, seed=3, hard_negative_pool=4)
    for _ in range(5):
        next(again)
    for a, b in zip(
        (next(resumed) for _ in range(4)), (next(again) for _ in range(4)), strict=True
    ):
        assert a["caption"] == b["caption"] and a["image"].equal(b["image"])


@pytest.mark.parametrize(("size", "ranks"), [(16, 1), (4, 2)])
def test_every_fourth_pool_keeps_its_random_order(size, ranks):
    """Unrelated pictures must be told apart too."""
    source, pool = SceneSource("scenes-one", "train", 32), 3
    plans = [ShuffledPlan(source, size, 3, rank, ranks, pool) for rank in range(ranks)]
    unsorted = []
    for number in range(12):
        drawn = [plan.positions(pool * number + k) for k in range(pool) for plan in plans]
        order = np.concatenate(drawn).tolist()
        first = number * pool * size * ranks
        plain = list(range(first, first + len(order)))
        assert sorted(order) == plain
        unsorted += [number] if order == plain else []
    assert unsorted == [3, 7, 11]


def test_class_names_are_texts_too_and_epochs_stay_whole():
    labels = np.arange(24) % 3
    images = np.zeros((24, 4, 4, 1), np.uint8) + np.arange(24, dtype=np.uint8)[:, None, None, None]
    parts = [Part("train", images, labels), Part("test", images[:1], labels[:1])]
    table = select_split(array_index("three", "test", parts, ("a", "b", "c")), "train", None, None)
    drawn = batches(table, 4, seed=0, hard_negative_pool=2)
    seen = [next(drawn) for _ in range(6)]
    values = [round((x + 1) * 127.5) for batch in seen for x in batch["image"][:, 0, 0, 0].tolist()]
    assert sorted(values) == list(range(24))  # one epoch
    mixed = [len(set(batch["label"].tolist())) for batch in seen]
    assert min(mixed) < 3
    with pytest.raises(ValueError, match="neither captions nor classes"):
        bare = select_split(
            array_index("bare", "test", [Part("train", images, None)]), "train", None, None
        )
        texts_at(bare, [0], [0])


def test_captions_come_without_pictures(monkeypatch):
    source = SceneSource("scenes-one", "train", 32)
    rows = list(range(40))
    captions = list(source.read(rows)["caption"])
    monkeypatch.setattr(scene_source, "draw_all", None)  # nothing is drawn for them
    assert texts_at(source, rows, [0] * 40) == captions
    assert [text for (text,) in captions_of(source, 40)] == captions
    assert fill_templates(("golden_retriever",), [0], ("a {}.", "the {}"), [3]) == [
        "the golden retriever"
    ]

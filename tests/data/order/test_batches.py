"""Batches are a function of (seed, rank, number), whoever computes them."""

import json
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.data.order.batches import ShuffledPlan, batches, take, to_images, write_skipped
from triptych.data.order.permutation import permute
from triptych.data.source import SourceInfo
from triptych.data.sources import open_source


class Endless:
    """Index i is a picture of the value i."""

    info = SourceInfo("endless", "train", None, (2, 2, 1), ("even", "odd"), has_captions=True)

    def read(self, indices):
        indices = np.asarray(indices)
        images = np.broadcast_to(
            (indices % 256).astype(np.uint8)[:, None, None, None], (len(indices), 2, 2, 1)
        )
        captions = [(f"{i} a", f"{i} b", f"{i} c") for i in indices]
        return {"image": images.copy(), "label": indices % 2, "caption": captions}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty grey pictures; picture i has the value 8 * i, a class, and two captions."""
    root = tmp_path_factory.mktemp("pictures") / "set"
    for i in range(30):
        path = root / f"class{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 8 * i).save(path)
        path.with_suffix(".txt").write_text(f"number {i}\nthe number {i}")
    return root


def plain(batch):
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def first(source, count, **options):
    stream = batches(source, 7, seed=4, **options)
    return [plain(next(stream)) for _ in range(count)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(folder, workers):
    source = open_source(str(folder))
    assert first(source, 9, workers=workers) == first(open_source(str(folder)), 9)


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 40))
def test_any_start_continues_the_same_sequence(folder_source, start):
    stream = batches(folder_source, 5, seed=1, start=start)
    whole = batches(folder_source, 5, seed=1)
    for _ in range(start):
        next(whole)
    assert [plain(next(stream)) for _ in range(2)] == [plain(next(whole)) for _ in range(2)]


@pytest.fixture(scope="module")
def folder_source(folder):
    return open_source(str(folder))


def test_an_epoch_shows_every_picture_once_and_the_next_in_another_order(folder_source):
    rows = folder_source.rows
    there = sorted(8 * int(folder_source.index.names[row][-6:-4]) for row in rows)

    def epochs(seed):
        stream = batches(folder_source, 1, seed=seed)
        values = [next(stream)["image"].mean().item() for _ in range(4 * len(rows))]
        order = [round((value + 1) * 127.5) for value in values]
        return [tuple(order[at : at + len(rows)]) for at in range(0, len(order), len(rows))]

    orders = [*epochs(2), *epochs(3)]
    assert all(sorted(order) == there for order in orders)
    assert len(set(orders)) == 8 and tuple(there) not in orders


def test_batches_are_the_positions_of_one_permutation_an_epoch(folder_source):
    """Read off one by one: epoch e is `permute` with the keys (seed, e)."""
    length = folder_source.info.length
    order = np.concatenate([permute(np.arange(length), length, 6, epoch) for epoch in range(4)])
    plan = ShuffledPlan(folder_source, 4, 6, 0, 1)
    drawn = [index for number in range(length) for index in plan.pick(number)[0]]
    assert drawn == order.tolist()


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 5),
    size=st.integers(1, 6),
    number=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_ranks_share_the_batch_of_one_trainer(folder_source, ranks, size, number, seed):
    """What all ranks see in step k is what a single trainer with the whole batch sees."""
    parts = [
        ShuffledPlan(folder_source, size, seed, rank, ranks).pick(number)[0]
        for rank in range(ranks)
    ]
    whole = ShuffledPlan(folder_source, size * ranks, seed, 0, 1).pick(number)[0]
    assert np.concatenate(parts).tolist() == whole


def test_a_batch_may_be_larger_than_the_source(folder_source):
    batch = next(batches(folder_source, 2 * folder_source.info.length, seed=0))
    values = [round(v) for v in (batch["image"].mean(dim=(1, 2, 3)) * 127.5 + 127.5).tolist()]
    assert all(values.count(value) == 2 for value in values)


def test_endless_sources_are_read_in_order():
    stream = batches(Endless(), 4, seed=0, rank=1, ranks=2, start=3)
    assert [c.split()[0] for c in next(stream)["caption"]] == ["28", "29", "30", "31"]


def test_one_of_several_captions_is_drawn_by_seed_and_position():
    def drawn(seed, start=0):
        return next(batches(Endless(), 300, seed=seed, start=start))["caption"]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    endings = [caption[-1] for caption in drawn(0)]
    assert all(70 <= endings.count(letter) <= 130 for letter in "abc")  # 3.7 sigma of 100
    assert take(Endless(), [5])["caption"] == ["5 a"]


def test_bytes_become_numbers_exactly():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    images = to_images(pictures)
    expected = pictures.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    assert images.is_contiguous() and images.dtype == torch.float32
    assert np.abs(images.numpy() - expected).max() < 1e-7
    assert to_images(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)).flatten().tolist() == [-1, 1]


def test_the_global_random_state_is_left_alone(folder_source):
    before = torch.get_rng_state()
    next(batches(folder_source, 2, seed=0, workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_source_survives_being_pickled(folder_source):
    """A worker that is spawned, not forked, gets its source this way."""
    again = pickle.loads(pickle.dumps(folder_source))
    assert plain(take(again, [3, 1])) == plain(take(folder_source, [3, 1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_lost_during_training_is_replaced_and_named(tmp_path, workers):
    for i in range(20):
        Image.new("L", (4, 4), 10 * i).save(tmp_path / f"{i:02d}.png")
    source = open_source(str(tmp_path))
    lost = source.index.names[source.rows[4]]
    (tmp_path / lost).unlink()
    stream = batches(source, source.info.length, seed=0, workers=workers)
    batch = next(stream)
    values = sorted(round(v) for v in ((batch["image"] + 1) * 127.5).mean(dim=(1, 2, 3)).tolist())
    after = int(source.index.names[source.rows[5]][:2])
    expected = sorted(
        [10 * int(source.index.names[r][:2]) for r in source.rows if source.index.names[r] != lost]
        + [10 * after]
    )
    assert values == expected
    assert stream.skipped == {lost: "No such file or directory"}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_pictures_stop_the_run(tmp_path, workers):
    for i in range(20):
        Image.new("L", (4, 4), 10 * i).save(tmp_path / f"{i:02d}.png")
    source = open_source(str(tmp_path))
    for row in source.rows[:3]:
        path = tmp_path / source.index.names[row]
        path.write_bytes(path.read_bytes()[:50])  # the header stays sound
    with pytest.raises(ValueError, match="more than 10%"):
        next(batches(source, source.info.length, seed=0, workers=workers))


def test_a_source_without_a_readable_picture_is_an_error(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    source = open_source(str(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="no picture"):
        take(source, [0])


def test_a_killed_worker_is_a_clear_error(folder):
    import multiprocessing

    stream = batches(open_source(str(folder)), 4, seed=0, workers=1)
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="process that reads data died"):
        for _ in range(4):  # more than a worker reads ahead
            next(stream)


def test_skipped_pictures_are_written_as_json_lines(tmp_path):
    skipped = {"a b.png": "cut short", "ü\n.png": "not a picture"}
    write_skipped(tmp_path / "skipped.jsonl", skipped)
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert {row["name"]: row["reason"] for row in map(json.loads, lines)} == skipped
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.jsonl"]


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"rank": 2, "ranks": 2}, {"start": -1}, {"workers": -1}]
)
def test_impossible_batches_are_refused(options):
    with pytest.raises(ValueError, match="no batches are possible"):
        batches(Endless(), options.pop("batch_size", 4), seed=0, **options)

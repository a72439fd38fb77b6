"""Buckets: closed forms of the shapes, what is cut, and every picture once an epoch."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.data.order.batches import PlannedBatches, to_batch
from triptych.data.order.buckets import (
    BucketedSource,
    BucketPlan,
    assign_buckets,
    bucket_batches,
    bucket_shapes,
    crop_sizes,
    nearest_shapes,
)
from triptych.data.sources import open_source

SIDES = [(64, 64)] * 7 + [(40, 80)] * 5 + [(90, 45)] * 3 + [(64, 50)] * 4 + [(20, 100)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures of five shapes; what a picture shows is where its pixels lie."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    Image.new("RGB", (64, 64), "white").save(tmp_path / "test" / "held out.png")
    (tmp_path / "test" / "held out.txt").write_text("a white square")
    for number, (height, width) in enumerate(SIDES):
        rows, columns = np.mgrid[:height, :width]
        red, green = 255 * rows / (height - 1), 255 * columns / (width - 1)
        picture = np.stack([red, green, np.full((height, width), number)], 2)
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "train" / f"{number:02d}.png")
        (tmp_path / "train" / f"{number:02d}.txt").write_text(f"one {number}\ntwo {number}")
    return tmp_path


@pytest.fixture
def source(folder: Path) -> BucketedSource:
    return assign_buckets(open_source(str(folder), size=64), bucket_shapes(64, 16))


@pytest.mark.parametrize(("size", "step"), [(64, 16), (512, 64), (1024, 32), (768, 64), (64, 64)])
def test_shapes_have_about_as_many_pixels_and_sides_of_whole_steps(size: int, step: int) -> None:
    found = bucket_shapes(size, step)
    assert (size, size) in found
    assert {(w, h) for h, w in found} == set(found)
    for height, width in found:
        assert height % step == width % step == 0
        assert max(height, width) <= 2 * min(height, width)
        short, long = sorted((height, width))
        assert abs(short * long - size * size) <= short * step / 2  # no multiple is nearer


def test_the_shapes_of_512() -> None:
    """By hand: 512 * 512 / 448 = 585.1, / 384 = 682.7, / 320 = 819.2, which is past 2 to 1."""
    turned = {(448, 576), (384, 704)}
    assert set(bucket_shapes(512, 64)) == {(512, 512)} | turned | {(w, h) for h, w in turned}


def test_a_size_between_steps_is_refused_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match="512 or 576, not 520"):
        bucket_shapes(520, 64)


def test_every_picture_goes_to_the_nearest_ratio(source: BucketedSource) -> None:
    assert len(source.buckets) == len(SIDES)
    for (height, width), bucket in zip(SIDES, source.buckets.tolist(), strict=True):
        errors = [abs(np.log(height / width * w / h)) for h, w in source.shapes]
        assert errors[bucket] == min(errors)
    assert nearest_shapes(np.array([[1000, 1000], [10, 1000]]), [(64, 64), (48, 80)]).tolist() == [
        0,
        1,
    ]


def test_a_picture_covers_its_bucket_and_loses_only_what_is_over(source: BucketedSource) -> None:
    """The colours say which rows and columns of the picture are left."""
    for index, (height, width) in enumerate(SIDES):
        columns = source.read([index])
        high, wide = source.shapes[source.buckets[index]]
        (image,), (sizes,) = columns["image"], columns["sizes"]
        assert image.shape == (high, wide, 3)
        scale = max(high / height, wide / width)
        rows, cols = high / scale / height, wide / scale / width  # shares that are kept
        assert max(rows, cols) == pytest.approx(1)
        seen = image[..., 0].astype(float), image[..., 1].astype(float)
        for share, colour, side in zip((rows, cols), seen, (high, wide), strict=True):
            kept = (colour.max() - colour.min()) / 255
            assert kept == pytest.approx(share, abs=2.5 / side)
            assert colour.mean() == pytest.approx(127.5, abs=4)  # out of the middle
        top, left = (height * scale - high) / 2, (width * scale - wide) / 2
        assert sizes.tolist() == [height, width, round(top), round(left), high, wide]


def test_cut_is_what_sdxl_is_told() -> None:
    """A picture of 1000 x 2000 in a square of 500: half as large, 250 columns lost on each side."""
    assert crop_sizes(np.array([[1000, 2000]]), 500, 500).tolist() == [
        [1000, 2000, 0, 250, 500, 500]
    ]


def plan(
    source: BucketedSource, size: int, rank: int = 0, ranks: int = 1, seed: int = 3
) -> BucketPlan:
    return BucketPlan(source, source.buckets, size, seed, rank, ranks)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_counts_are_the_closed_form_and_nothing_is_dropped(
    source: BucketedSource, size: int
) -> None:
    """After e epochs a bucket of n has given floor(e n / B) batches: the first of a sequence that
    holds every picture once for every epoch.
    """
    whole = plan(source, size)
    members = {b: len(p) for b, p in whole.members.items()}
    seen: Counter[int] = Counter()
    number = 0
    for epoch in range(1, 13):
        until = sum(epoch * n // size for n in members.values())
        while number < until:
            bucket, batch = whole.locate(number)
            assert batch < epoch * members[bucket] // size
            indices = recorded(whole, number)
            assert len(indices) == size
            assert set(source.buckets[indices]) == {bucket}
            seen.update(indices)
            number += 1
        for bucket, n in members.items():
            counts = [seen[i] for i in whole.members[bucket].tolist()]
            given = epoch * n // size * size
            assert sum(counts) == given
            assert given // n <= min(counts) and max(counts) <= -(-given // n)
    assert len({whole.locate(n) for n in range(number)}) == number


def recorded(whole: BucketPlan, number: int) -> list[int]:
    """The pictures of a batch, by the blue that says which each is."""
    columns = PlannedBatches(whole)[number]
    assert not isinstance(columns, str)
    return [int(caption.split()[1]) for caption in columns["caption"]]


def test_batches_are_shuffled_anew_every_epoch(source: BucketedSource) -> None:
    whole = plan(source, 2)
    members = [len(p) for p in whole.members.values()]
    each = [sum(e * n // 2 for n in members) for e in (0, 2, 4)]
    orders = [[recorded(whole, n) for n in range(*span)] for span in pairwise(each)]
    assert orders[0] != orders[1]
    buckets = [whole.locate(n)[0] for n in range(each[1])]
    assert buckets != sorted(buckets)
    assert [recorded(plan(source, 2, seed=4), n) for n in range(each[1])] != orders[0]


def test_any_batch_is_had_by_its_number_and_ranks_share_them(source: BucketedSource) -> None:
    whole = bucket_batches(source, source.buckets, 3, seed=5)
    texts = [next(whole)["caption"] for _ in range(30)]
    for start in (1, 7, 29):
        later = bucket_batches(source, source.buckets, 3, seed=5, start=start)
        assert next(later)["caption"] == texts[start]
    ranks = [bucket_batches(source, source.buckets, 3, seed=5, rank=r, ranks=2) for r in (0, 1)]
    assert [next(ranks[n % 2])["caption"] for n in range(30)] == texts
    workers = bucket_batches(source, source.buckets, 3, seed=5, workers=2)
    assert [next(workers)["caption"] for _ in range(30)] == texts


def test_both_captions_are_drawn(source: BucketedSource) -> None:
    drawn = bucket_batches(source, source.buckets, 4, seed=1)
    first = Counter(c.split()[0] for _ in range(60) for c in next(drawn)["caption"])
    assert first["one"] == pytest.approx(120, abs=35)


def test_a_broken_picture_is_named_and_replaced_in_the_shape_of_its_bucket(folder: Path) -> None:
    path = folder / "train" / "19.png"  # the only picture of its shape
    path.write_bytes(path.read_bytes()[:120])
    source = assign_buckets(open_source(str(folder), size=64), bucket_shapes(64, 16))
    columns = source.read([19])
    assert columns["image"].shape[1:3] == source.shapes[source.buckets[19]]
    assert columns["caption"] == [("one 0", "two 0")]
    assert [name for name, _ in columns["skipped"]] == ["train/19.png"]
    assert to_batch(columns)["sizes"].tolist()[0][:2] == [64, 64]

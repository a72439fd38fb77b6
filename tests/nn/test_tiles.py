"""Tiles against the whole: shares sum to 1, and a network that looks nowhere else is untouched."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from triptych.nn.tiles import apply_in_tiles, pad_to_multiple, tile_starts, tile_weights


@pytest.mark.parametrize("length", [1, 7, 64, 65, 100, 128, 129, 1000])
@pytest.mark.parametrize(("side", "overlap", "step"), [(64, 16, 1), (64, 16, 8), (32, 0, 4)])
def test_tiles_cover_everything_and_their_shares_sum_to_one(length, side, overlap, step):
    length = -(-length // step) * step
    places = tile_starts(length, side, overlap, step)
    assert places[0] == 0 and all(place % step == 0 for place in places)
    assert max(places) + side >= length and (len(places) == 1 or max(places) + side == length)
    gaps = [after - before for before, after in pairwise(places)]
    assert all(0 < gap <= side - overlap for gap in gaps)
    assert len(places) == 1 or len(places) == -(-(length - overlap) // (side - overlap))
    weights = tile_weights(places, side, overlap, length)
    torch.testing.assert_close(weights.sum(0), torch.ones(length))
    assert (weights >= 0).all()
    for weight, place in zip(weights, places, strict=True):
        inside = torch.zeros(length, dtype=torch.bool)
        inside[place : place + side] = True
        assert (weight[inside] > 0).all() and (weight[~inside] == 0).all()


def test_shares_are_linear_over_the_overlap():
    (first, second) = tile_weights([0, 6], 10, 4, 16)
    expected = torch.tensor([1, 1, 1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected.flip(0))


@pytest.mark.parametrize("overlap", [4, 8])
def test_a_border_of_the_picture_is_no_overlap(overlap):
    """Two tiles of 10: the first has all of the first pixels, however far the second reaches."""
    start = 10 - overlap
    (first, second) = tile_weights([0, start], 10, overlap, start + 10)
    falling = (10 - torch.arange(float(start), 10) - 0.5) / overlap
    torch.testing.assert_close(first, torch.cat([torch.ones(start), falling, torch.zeros(start)]))
    torch.testing.assert_close(second, first.flip(0))


def shrink(x):
    return F.avg_pool2d(x, 4)


def grow(x):
    return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize("size", [(32, 32), (36, 80), (100, 16), (148, 148)])
def test_a_pointwise_network_gives_the_whole(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    seen = []

    def watched(network):
        def run(part):
            seen.append(part.shape)
            return network(part)

        return run

    small = apply_in_tiles(watched(shrink), x, side=32, overlap=8, shrink=4)
    torch.testing.assert_close(small, shrink(x))
    large = apply_in_tiles(watched(grow), x, side=32, overlap=8, grow=4)
    torch.testing.assert_close(large, grow(x))
    assert all(max(shape[2:]) <= 32 for shape in seen)
    if size == (32, 32):
        assert len(seen) == 2  # one tile each: the network itself
        assert torch.equal(small, shrink(x)) and torch.equal(large, grow(x))


def test_half_precision_is_summed_in_float32():
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    result = apply_in_tiles(lambda part: part, x, side=16, overlap=8)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, x, atol=0, rtol=2**-8)  # one rounding


def test_continued():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    wide = pad_to_multiple(x, 4)
    assert wide.shape == (1, 1, 4, 4)
    assert wide[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_multiple(x, 1) is x

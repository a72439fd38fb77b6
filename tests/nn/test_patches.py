"""Which pictures, stems and groups tile, at both sides of every bound."""

import pytest
import torch

from triptych.nn.patches import check_stem, crop_to_patches, keep_patches, patch_embedding


@pytest.mark.parametrize(
    ("given", "kept"), [((8, 12), (8, 12)), ((11, 7), (8, 4)), ((4, 4), (4, 4))]
)
def test_what_patches_do_not_tile_is_cut_off_below_and_on_the_right(given, kept):
    pixels = torch.randn(2, 3, *given)
    assert torch.equal(crop_to_patches(pixels, 4), pixels[:, :, : kept[0], : kept[1]])


@pytest.mark.parametrize("side", [(3, 8), (8, 3)])
def test_a_picture_below_a_patch_is_refused(side):
    with pytest.raises(ValueError, match="has no 4 pixel patch"):
        crop_to_patches(torch.zeros(1, 3, *side), 4)


@pytest.mark.parametrize(
    ("size", "patch", "stem", "group"),
    [(32, 8, (8, 12, 16), 0), (32, 8, (8, 12, 16), 4), (32, 8, (8, 8, 8), 8), (30, 7, (), 0),
     (30, 7, (), 5), (4, 4, (3, 5), 1)],
)  # fmt: skip
def test_stems_that_tile_are_taken(size, patch, stem, group):
    check_stem(size, patch, stem, group)


@pytest.mark.parametrize(
    ("size", "patch", "stem", "group", "says"),
    [
        (32, 8, (8, 12, 16), 3, "must divide each of"),
        (32, 8, (8, 12, 16), 8, "must divide each of"),  # the first alone
        (32, 8, (), -1, "must divide each of"),
        (32, 8, (8, 8, 8), -8, "must divide each of"),
        (32, 8, (8, 12), 0, "patches of 4 pixels, not 8"),
        (32, 4, (8, 12, 16), 0, "patches of 8 pixels, not 4"),
        (36, 8, (8, 12, 16), 0, "do not tile a side of 36"),
    ],
)
def test_stems_that_do_not_are_refused(size, patch, stem, group, says):
    with pytest.raises(ValueError, match=says):
        check_stem(size, patch, stem, group)


def test_one_filter_is_a_product_with_every_patch():
    """Rows of a patch after each other, channels first; without a bias where it says so."""
    torch.manual_seed(0)
    layer, x = patch_embedding(5, 4, (), bias=False), torch.randn(2, 3, 8, 12)
    assert layer.bias is None and patch_embedding(5, 4, (), bias=True).bias is not None
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    expected = patches @ layer.weight.flatten(1).T
    torch.testing.assert_close(layer(x).permute(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.3, 2), (0.01, 1), (1.0, 8)])
def test_the_share_that_is_kept_is_rounded_and_at_least_one(keep, count):
    x = torch.arange(8.0)[None, :, None].expand(3, 8, 20)
    kept = keep_patches(x, keep)
    assert kept.shape == (3, count, 20)
    for row in kept:
        assert len(set(row[:, 0].tolist())) == count and torch.equal(row, row[:, :1].expand_as(row))

"""Sliding windows: sums by hand, pictures of any shape covered, nothing squashed."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from triptych.systems.detection.windows import average_windows, batch_crops, plan_windows


def by_hand(rows, columns, grids, scores) -> torch.Tensor:
    """Every pixel's average over the windows that cover it, then every patch's over its pixels."""
    height, width = rows[-1], columns[-1]
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    number = 0
    for grid in grids:
        for top in grid.tops:
            for left in grid.lefts:
                inside = slice(top, top + grid.side), slice(left, left + grid.side)
                total[inside] += scores[number]
                count[inside] += 1
                number += 1
    patches = torch.zeros(len(rows) - 1, len(columns) - 1)
    for i, (top, bottom) in enumerate(pairwise(rows)):
        for j, (left, right) in enumerate(pairwise(columns)):
            inside = slice(top, bottom), slice(left, right)
            patches[i, j] = total[inside].sum() / count[inside].sum()
    return patches


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (37, 53), (61, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_averages_over_the_windows_that_cover_them(shape, stride) -> None:
    chosen = plan_windows(*shape, 32, patch=4, windows=(2, 3), stride=stride)
    scores = torch.rand(len(chosen), 2, generator=torch.Generator().manual_seed(0))
    ours = average_windows(chosen, scores)
    for label in range(2):
        wanted = by_hand(chosen.rows, chosen.columns, chosen.grids, scores[:, label])
        assert torch.allclose(ours[label], wanted, atol=1e-5)


def test_one_window_in_the_lecture_s_way() -> None:
    """Four patches in a row, windows of two: the middle patches are covered twice."""
    chosen = plan_windows(4, 16, 8, patch=4, windows=(1,))
    assert len(chosen) == 4
    chosen = plan_windows(8, 16, 8, patch=4, windows=(2,))
    ours = average_windows(chosen, torch.tensor([[1.0], [0.0], [0.5]]))
    assert torch.allclose(ours[0], torch.tensor([1.0, 0.5, 0.25, 0.5]).expand(2, 4))


@pytest.mark.parametrize("shape", [(64, 64), (480, 640), (33, 200), (7, 5), (1, 40)])
def test_every_pixel_is_covered_by_squares_inside_the_picture(shape) -> None:
    chosen = plan_windows(*shape, 224)
    seen = np.zeros(shape, dtype=int)
    for grid in chosen.grids:
        for top in grid.tops:
            for left in grid.lefts:
                seen[top : top + grid.side, left : left + grid.side] += 1
        assert max(grid.tops) + grid.side == shape[0]
        assert max(grid.lefts) + grid.side == shape[1]
        assert grid.side <= min(shape)
    assert seen.all()
    picture = np.zeros((*shape, 3), np.uint8)
    crops = [crop for batch in batch_crops(chosen, picture, 7) for crop in batch]
    assert len(crops) == len(chosen)
    assert {crop.shape for crop in crops} == {(g.side, g.side, 3) for g in chosen.grids}


def test_the_crops_come_in_the_order_of_the_scores() -> None:
    picture = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20, 1)
    chosen = plan_windows(12, 20, 8, patch=4, windows=(1,))
    corners = torch.tensor([[float(crop[0, 0, 0])] for crop in chosen.crops(picture)])
    wanted = torch.tensor(picture[::4, ::4, 0].astype(np.float32))
    assert torch.equal(average_windows(chosen, corners)[0], wanted)


def test_small_pictures_get_windows_that_the_model_can_see() -> None:
    """Of 64 pixels for a model of 64: quarters and more, none enlarged more than fourfold."""
    sides = [grid.side for grid in plan_windows(64, 64, 64).grids]
    assert sides == [16, 24]
    assert min(grid.side for grid in plan_windows(64, 64, 224).grids) >= 56


def test_equal_windows_are_looked_at_once() -> None:
    assert len(plan_windows(8, 8, 8, patch=4, windows=(2, 5)).grids) == 1  # two of its size


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="patches of 9 pixels do not fit into a picture of 20 x 8"):
        plan_windows(8, 20, 8, patch=9)
    with pytest.raises(ValueError, match="at least 1"):
        plan_windows(8, 20, 8, windows=(0,))
    with pytest.raises(ValueError, match="is empty"):
        plan_windows(0, 20, 8)
    with pytest.raises(ValueError, match="2 rows of scores for 3 windows"):
        average_windows(plan_windows(8, 16, 8, patch=4, windows=(2,)), torch.zeros(2, 1))

"""Heat maps to boxes: interpolation against numpy, components against scipy, peaks against closed
forms.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage

from triptych.systems.detection.heatmaps import (
    connected_cells,
    find_boxes,
    find_peaks,
    interpolation_matrix,
    resample,
    stretch,
)
from triptych.vision.boxes import iou


def hill(size: tuple[int, int], middle: tuple[float, float], height: float, fall: float):
    """A cone: `height` in the middle, `fall` less a cell in the larger of both directions."""
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
    away = torch.maximum((rows - middle[0]).abs(), (columns - middle[1]).abs())
    return (height - fall * away).clamp(min=0)


def test_interpolation_is_numpys_between_the_middles_of_cells() -> None:
    edges = np.array([0.0, 4.0, 8.0, 12.0, 13.0])  # the last cell is cut off
    values = np.array([3.0, -1.0, 2.0, 5.0])
    ours = interpolation_matrix(edges, 13, 26) @ torch.tensor(values).float()
    wanted = np.interp((np.arange(26) + 0.5) / 2, [2, 6, 10, 12.5], values)
    assert torch.allclose(ours, torch.tensor(wanted).float(), atol=1e-6)


def test_cells_beyond_the_picture_shift_nothing() -> None:
    """Five cells of 4 pixels over a picture of 18: the map ends at 18, not at 20."""
    ours = interpolation_matrix(np.arange(6) * 4.0, 18, 18) @ torch.arange(5).float()
    wanted = np.interp(np.arange(18) + 0.5, np.arange(5) * 4 + 2.0, np.arange(5.0))
    assert torch.allclose(ours, torch.tensor(wanted).float(), atol=1e-6)


def test_one_cell_is_constant_and_a_map_that_fits_stays_as_it_is() -> None:
    one = resample(torch.tensor([[[2.5]]]), (np.array([0.0, 7.0]),) * 2, (7, 7), (3, 4))
    assert torch.equal(one, torch.full((1, 3, 4), 2.5))
    values = torch.randn(2, 3, 5)
    edges = np.arange(4) * 2.0, np.arange(6) * 2.0
    assert torch.allclose(resample(values, edges, (6, 10), (3, 5)), values, atol=1e-6)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_components_are_scipys(share: float) -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        mask = draw.random((17, 23)) < share
        numbers, count = ndimage.label(mask)
        for number in range(1, count + 1):
            region = numbers == number
            cells = np.argwhere(region)
            assert np.array_equal(
                connected_cells(mask, tuple(cells[draw.integers(len(cells))])), region
            )


def test_a_spiral_is_followed_to_its_end() -> None:
    spiral = """
#########
........#
#######.#
#.....#.#
#.###.#.#
#.#...#.#
#.#####.#
#.......#
#########"""
    rows = spiral.split()
    mask = np.array([[c == "#" for c in row] for row in rows])
    region = connected_cells(mask, (0, 0))
    assert np.array_equal(region, ndimage.label(mask)[0] == ndimage.label(mask)[0][0, 0])
    assert not connected_cells(mask, (1, 0)).any()


def test_the_box_of_a_cone_is_known() -> None:
    """Height 1, falling 0.1 a cell: half of it is reached within 5 cells of the middle."""
    boxes, heights = find_peaks(hill((40, 60), (20.5, 30.5), 1.0, 0.1), 0.3, 0.5)
    assert heights.tolist() == pytest.approx([1.0])
    assert torch.allclose(boxes, torch.tensor([[25 / 60, 15 / 40, 36 / 60, 26 / 40]]))


def test_two_hills_are_two_boxes_and_a_shoulder_is_none() -> None:
    size = (30, 60)
    apart = torch.maximum(hill(size, (15.5, 12.5), 1.0, 0.1), hill(size, (15.5, 45.5), 0.7, 0.1))
    boxes, heights = find_peaks(apart, 0.3, 0.5)
    assert heights.tolist() == pytest.approx([1.0, 0.7])
    assert boxes[0, 2] < boxes[1, 0]
    # the dip between them, 0.65, is more than half of either: one thing with a shoulder
    close = torch.maximum(hill(size, (15.5, 12.5), 1.0, 0.1), hill(size, (15.5, 16.5), 0.9, 0.1))
    assert len(find_peaks(close, 0.3, 0.5)[0]) == 1
    # and at a share that the dip does not reach, two
    assert len(find_peaks(close, 0.3, 0.95)[0]) == 2


def test_a_lower_hill_keeps_its_own_measure() -> None:
    """Each box reaches down to a share of its own peak, not of the highest one."""
    size = (20, 60)
    map_ = torch.maximum(hill(size, (10.5, 10.5), 1.0, 0.1), hill(size, (10.5, 45.5), 0.4, 0.04))
    boxes, _ = find_peaks(map_, 0.3, 0.5)
    widths = (boxes[:, 2] - boxes[:, 0]) * 60
    assert widths.tolist() == pytest.approx([11, 11])


def test_what_is_below_the_threshold_or_zero_is_no_peak() -> None:
    assert len(find_peaks(hill((9, 9), (4.5, 4.5), 0.29, 0.1), 0.3, 0.5)[0]) == 0
    assert len(find_peaks(torch.zeros(9, 9), 0.0, 0.5)[0]) == 0
    flat, heights = find_peaks(torch.full((4, 8), 0.5), 0.3, 0.5)  # one plateau: one box
    assert flat.tolist() == [[0, 0, 1, 1]] and len(heights) == 1


@pytest.mark.parametrize("extent", [0.0, 1.5, -1.0])
def test_an_extent_is_a_share(extent: float) -> None:
    with pytest.raises(ValueError, match="share of its peak"):
        find_peaks(torch.ones(2, 2), 0.3, extent)


def test_labels_do_not_suppress_one_another_and_the_best_is_first() -> None:
    heat = torch.stack([hill((20, 20), (10.5, 10.5), h, 0.1) for h in (0.5, 0.2, 0.9)])
    ours = find_boxes(heat, 0.3, 0.5, 0.5, 20)
    assert ours.labels.tolist() == [2, 0]
    assert ours.scores.tolist() == pytest.approx([0.9, 0.5])
    assert float(iou(ours.corners[:1], ours.corners[1:])[0, 0]) > 0.2


def test_the_limit_is_per_label() -> None:
    row = torch.stack([hill((9, 60), (4.5, 5.5 + 12 * k), 1 - 0.1 * k, 0.3) for k in range(5)])
    heat = row.amax(0).repeat(2, 1, 1)
    ours = find_boxes(heat, 0.3, 0.5, 0.5, 2)
    assert sorted(ours.labels.tolist()) == [0, 0, 1, 1]
    assert ours.scores.min() == pytest.approx(0.9, abs=1e-6)


def test_stretching_goes_from_the_mean_to_the_largest_value() -> None:
    heat = torch.tensor([[[0.0, 1.0], [2.0, 5.0]], [[0.3, 0.3], [0.3, 0.3]]])
    assert torch.allclose(stretch(heat)[0], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(stretch(heat)[1], torch.zeros(2, 2))  # no relief, no heat

"""The waves that stand for a time."""

import itertools

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F

from triptych.nn.position import (
    neighbour_mask,
    resize_grid,
    rotary_angles,
    rotate,
    timestep_embedding,
)


@pytest.mark.parametrize("dim", [64, 33, 2, 1])
@pytest.mark.parametrize(
    "time", [torch.tensor([0, 1, 999]), torch.tensor([0.25, 531.7]), torch.tensor([0.1]).double()]
)
def test_it_is_that_of_diffusers(time, dim):
    theirs = get_timestep_embedding(time, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    ours = timestep_embedding(time, dim)
    torch.testing.assert_close(ours.float(), theirs, atol=1e-6, rtol=0)


def test_closed_form():
    ours = timestep_embedding(torch.tensor([2.5], dtype=torch.float64), 4)
    angles = torch.tensor([2.5, 2.5 / 100], dtype=torch.float64)
    expected = torch.cat([angles.cos(), angles.sin()])[None]
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=0)


def test_half_precision_times_are_waves_in_float32():
    """bfloat16 has steps of 4 near 999; the waves of the time given are still exact."""
    time = torch.tensor([996.0])
    given = timestep_embedding(time.bfloat16(), 8)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, timestep_embedding(time, 8))


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (5, 2)])
@pytest.mark.parametrize("reach", [0, 1, 2, 9])
def test_neighbours_are_so_many_rows_and_columns_away(grid, reach):
    places = list(itertools.product(range(grid[0]), range(grid[1])))  # rows come first
    expected = [[max(abs(a - c), abs(b - d)) <= reach for c, d in places] for a, b in places]
    assert neighbour_mask(grid, reach).tolist() == expected


@pytest.mark.parametrize(("mode", "antialias"), [("bicubic", False), ("bilinear", True)])
def test_a_grid_is_resized_as_a_picture_of_its_numbers(mode, antialias):
    torch.manual_seed(0)
    position = torch.randn(9, 2)
    picture = torch.stack([position[:, i].reshape(3, 3) for i in range(2)])[None]
    wide = F.interpolate(picture, (2, 5), mode=mode, antialias=antialias)
    ours = resize_grid(position, (2, 5), mode=mode, antialias=antialias)
    expected = [wide[0, :, row, column] for row in range(2) for column in range(5)]
    torch.testing.assert_close(ours, torch.stack(expected))
    assert resize_grid(position, (3, 3)) is position
    assert resize_grid(position.bfloat16(), (2, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_a_head_is_turned_as_complex_numbers(factor):
    """Pair (i, i + width / 2) at a position p by p base^(-2i/width)."""
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 7, 9], [4, 5, 6, 7, 8]])
    turned = rotate(x, *rotary_angles(positions, 8, 100.0, factor))
    angles = positions[:, None, :, None] / factor * 100.0 ** (-torch.arange(4) / 4)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))

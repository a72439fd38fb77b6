"""The waves that stand for a time."""

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from triptych.nn.position import timestep_embedding


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

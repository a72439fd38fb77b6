"""Diversity: distances by loops, scaling, collapse."""

import itertools
import math

import pytest
import torch

from triptych.scores.diversity import diversity, mean_pairwise_distance


def test_mean_pairwise_distance_is_over_all_pairs():
    points = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    pairs = list(itertools.combinations(points.tolist(), 2))
    wanted = sum(math.dist(p, q) for p, q in pairs) / len(pairs)
    assert mean_pairwise_distance(points) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="two pictures"):
        mean_pairwise_distance(points[:1])


def test_each_class_is_compared_with_its_own():
    """Class 0 as real, class 1 at half the spread elsewhere, class 2 collapsed, class 3 lone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 5, generator=generator)
    label = torch.arange(2000) % 4
    ours = x.clone()
    ours[label == 1] = 0.5 * x[label == 1] + 10
    ours[label == 2] = 1.0
    few = torch.cat([torch.where(label != 3)[0], torch.where(label == 3)[0][:1]])
    found = diversity(ours[few], label[few], x, label, classes=4, limit=400)
    assert found[:3] == pytest.approx((1, 0.5, 0), abs=1e-6)
    assert found[3] is None


def test_only_the_first_pictures_of_a_class_count():
    x = torch.cat([torch.randn(20, 3), 1000 * torch.randn(20, 3)])
    label = torch.zeros(40, dtype=torch.int64)
    assert diversity(x, label, x[:20], label[:20], 1, limit=20) == pytest.approx((1,))


def test_two_pictures_are_enough_and_equal_real_ones_are_no_measure():
    pair, label = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.zeros(2, dtype=torch.int64)
    assert diversity(pair, label, 2 * pair, label, 1) == pytest.approx((0.5,))
    assert diversity(pair[:1], label[:1], pair, label, 1) == (None,)
    assert diversity(pair, label, pair[:1], label[:1], 1) == (None,)
    assert diversity(pair, label, torch.ones(2, 2), label, 1) == (None,)

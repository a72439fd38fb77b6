"""Precision, recall, density, coverage: a plain loop, expectations in closed form, lost modes."""

import math

import pytest
import torch

from triptych.scores.prdc import prdc


def by_loops(real, samples, k):
    """The definitions, pair by pair."""

    def radii(points):
        return [sorted(math.dist(p, q) for q in points)[k] for p in points]

    def within(p, q, radius):
        return math.dist(p, q) <= radius

    real_radius, sample_radius = radii(real), radii(samples)
    pairs = [[within(r, s, d) for s in samples] for r, d in zip(real, real_radius, strict=True)]
    precision = sum(map(any, zip(*pairs, strict=True))) / len(samples)
    coverage = sum(map(any, pairs)) / len(real)
    density = sum(map(sum, pairs)) / (k * len(samples))
    close = [[within(r, s, d) for s, d in zip(samples, sample_radius, strict=True)] for r in real]
    return precision, sum(map(any, close)) / len(real), density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definitions(k):
    generator = torch.Generator().manual_seed(k)
    real = torch.randn(60, 3, generator=generator).double()
    samples = 0.8 * torch.randn(45, 3, generator=generator).double() + 0.7
    found = prdc(real, samples, neighbours=k)
    wanted = by_loops(real.tolist(), samples.tolist(), k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(wanted)


def test_a_set_against_itself():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    found = prdc(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_equal_distributions_meet_their_expectations():
    """arXiv:2002.09797, lemmas 1 and 2: density 1, coverage 1 - (N-1)...(N-k) / (2N-1)...(2N-k)."""
    count, k = 3000, 5
    generator = torch.Generator().manual_seed(0)
    found = prdc(*torch.randn(2, count, 6, generator=generator), neighbours=k)
    missed = math.prod((count - i) / (2 * count - i) for i in range(1, k + 1))
    assert found.coverage == pytest.approx(1 - missed, abs=0.01)
    assert found.density == pytest.approx(1, abs=0.03)


def test_disjoint_sets_share_nothing():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    found = prdc(x, x + 100)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_a_dropped_mode_costs_recall_and_coverage_but_not_precision():
    generator = torch.Generator().manual_seed(0)
    place = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    real = place.repeat(250, 1) + torch.randn(1000, 2, generator=generator)
    samples = place[:3].repeat(250, 1) + torch.randn(750, 2, generator=generator)
    found = prdc(real, samples)
    assert found.precision > 0.95
    assert found.recall <= 0.75 and found.coverage <= 0.75
    swapped = prdc(samples, real)  # a mode that is not real
    assert swapped.precision <= 0.75 and swapped.recall > 0.95


def test_more_rows_than_are_held_at_once_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    real, samples = torch.randn(2, 150, 3, generator=generator).double()
    whole = prdc(real, samples)
    monkeypatch.setattr("triptych.scores.prdc.CHUNK", 7)
    assert prdc(real, samples) == whole


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 6 pictures, not 5 real and 9 samples"):
        prdc(torch.zeros(5, 2), torch.zeros(9, 2))

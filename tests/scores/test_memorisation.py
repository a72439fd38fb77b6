"""Nearest neighbours against scikit-learn; copies are recognised, honest samples not blamed."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from triptych.scores import memorisation as under_test
from triptych.scores.memorisation import QUANTILES, memorisation, nearest_neighbours


def draw(count, seed, dim=20):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_neighbours_equal_scikit_learns(monkeypatch):
    monkeypatch.setattr(under_test, "QUERIES", 13)
    monkeypatch.setattr(under_test, "BANK", 29)
    queries, training = draw(100, 0), draw(333, 1)
    distance, index = nearest_neighbours(queries, training)
    wanted, at = NearestNeighbors(n_neighbors=1).fit(training.numpy()).kneighbors(queries.numpy())
    assert index.tolist() == at[:, 0].tolist()
    torch.testing.assert_close(distance.double(), torch.tensor(wanted[:, 0]), rtol=1e-5, atol=1e-5)


def test_a_copy_is_at_distance_zero_also_in_bytes():
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(0, 256, (500, 784), generator=generator, dtype=torch.uint8)
    distance, index = nearest_neighbours(training[[7, 400]], training)
    assert distance.tolist() == [0, 0] and index.tolist() == [7, 400]


def test_of_equal_ones_the_first_is_named(monkeypatch):
    monkeypatch.setattr(under_test, "BANK", 2)
    picture = draw(1, 0)
    _, index = nearest_neighbours(picture, torch.cat([draw(1, 1), *[picture] * 4]))
    assert index.tolist() == [1]


def distances(samples, training, held_out):
    return (nearest_neighbours(x, training)[0] for x in (samples, held_out))


def test_honest_samples_are_as_far_as_unseen_pictures():
    found = memorisation(*distances(draw(1000, 0), draw(3000, 1), draw(1000, 2)))
    assert found.low <= found.expected <= found.high
    assert found.nearer == pytest.approx(0.5, abs=0.04)  # three standard errors


def test_a_few_exact_copies_are_seen():
    training, samples = draw(3000, 1), draw(1000, 0)
    samples[:100] = training[:100]
    found = memorisation(*distances(samples, training, draw(1000, 2)))
    assert 0.1 <= found.closer < 0.12 and found.low > 5 * found.expected
    assert found.samples[QUANTILES.index(0.05)] == 0


def test_vague_copies_of_everything_are_seen():
    training = draw(3000, 1)
    found = memorisation(*distances(training[:1000] + 0.5 * draw(1000, 0), training, draw(1000, 2)))
    assert found.nearer > 0.9


def test_closer_is_nearer_than_the_nearest_hundredth_of_unseen_pictures():
    """Of 0, 1, ... 200 the hundredth is 2: samples at 2 are not closer, 1.9 is."""
    samples = torch.tensor([2.0, 1.9, 2.1, 50.0])
    found = memorisation(samples, torch.arange(201.0))
    assert (found.threshold, found.closer, found.expected, found.count) == (2, 0.25, 0.01, 4)
    assert memorisation(samples, torch.arange(201.0), expected=0.5).closer == 1


def test_pairs_are_counted_with_ties_as_half():
    """By hand, of 2 x 3 pairs: 1 < 2, 1 < 3, 1 = 1 and 2.5 < 3."""
    found = memorisation(torch.tensor([1.0, 2.5]), torch.tensor([2.0, 1.0, 3.0]))
    assert found.nearer == pytest.approx((2 + 0.5 + 1) / 6)


def test_nothing_to_compare_with_is_refused():
    with pytest.raises(ValueError, match="equal D"):
        nearest_neighbours(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="training pictures"):
        nearest_neighbours(torch.zeros(2, 3), torch.zeros(0, 3))

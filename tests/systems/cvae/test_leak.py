"""The leak probe on codes whose answer is known."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from triptych.systems.cvae.leak import leak_probe


def codes(count, seed, dim=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, dim, generator=generator), label


def test_independent_codes_say_nothing():
    found = leak_probe(*codes(4000, 0), *codes(2000, 1), steps=200)
    assert found.low < 0.2 + 0.02 and found.value < 0.25
    assert found.chance == pytest.approx(0.2, abs=0.03)


def test_separate_codes_say_everything_whatever_their_scale_and_offset():
    def placed(count, seed):
        x, label = codes(count, seed)
        x[:, 0] += 20 * label
        x[:, 1] = 7.0  # never varies
        return 1000 + 1e-2 * x, label

    assert leak_probe(*placed(2000, 0), *placed(1000, 1), steps=150).value > 0.99


def exclusive_or(count, seed):
    x, _ = codes(count, seed, dim=2)
    return x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()


def test_the_probe_is_not_linear():
    train, test = exclusive_or(3000, 0), exclusive_or(1000, 1)
    line = LogisticRegression().fit(*(t.numpy() for t in train)).score(*(t.numpy() for t in test))
    assert line < 0.6
    assert leak_probe(*train, *test, steps=300).value > 0.95


def test_known_overlap_reaches_the_best_possible_reader_and_not_more():
    """Two classes at distance 2 with unit variance: no reader is right more often than Phi(1)."""

    def placed(count, seed):
        x, label = codes(count, seed, dim=8, classes=2)
        x[:, 3] += 2.0 * label
        return x, label

    best = torch.special.ndtr(torch.tensor(1.0)).item()  # 0.841
    found = leak_probe(*placed(20_000, 0), *placed(10_000, 1), steps=300)
    assert best - 0.02 < found.value < best + 0.012  # three standard errors above


def test_same_seed_same_answer_and_global_randomness_untouched():
    data = (*codes(500, 0), *codes(500, 1))
    before = torch.random.get_rng_state()
    first = leak_probe(*data, seed=3, steps=50)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    assert leak_probe(*data, seed=3, steps=50) == first
    assert leak_probe(*data, seed=4, steps=50) != first


def test_unequal_numbers_are_refused():
    x, label = codes(10, 0)
    with pytest.raises(ValueError, match="as many labels"):
        leak_probe(x, label[:9], x, label)

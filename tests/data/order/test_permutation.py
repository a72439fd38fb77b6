"""The order of an epoch is a bijection, the same everywhere, and looks like chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data.order.permutation import mix, permute, permute_epochs


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_every_item_comes_exactly_once(length, seed, epoch):
    items = permute(np.arange(length), length, seed, epoch)
    assert np.array_equal(np.sort(items), np.arange(length))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_item_depends_on_its_position_alone(data):
    length = data.draw(st.integers(1, 2000))
    some = data.draw(st.lists(st.integers(0, length - 1), max_size=20))
    whole = permute(np.arange(length), length, 5, 7)
    assert permute(np.array(some, np.int64), length, 5, 7).tolist() == whole[some].tolist()


def test_the_order_never_changes():
    """A resumed run must meet the order of the version that started it: these are frozen."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [3, 2, 1, 6, 8, 9, 0, 7, 4, 5]
    assert permute(np.arange(4), 60_000, 3, 1).tolist() == [47140, 6889, 30649, 24295]


def test_huge_sets_have_random_access():
    """A thousand positions of 10**15: each item once, and spread as chance spreads them."""
    length = 10**15
    positions = np.concatenate([np.arange(500), np.arange(length - 500, length)])
    items = permute(positions, length, 1, 2)
    assert len(np.unique(items)) == 1000 and items.min() >= 0 and items.max() < length
    shares = np.sort(items / length)
    steps = np.arange(1, 1001) / 1000
    assert np.abs(shares - steps).max() < 0.062  # Kolmogorov and Smirnov's bound at 0.1 %
    assert items[::-1].tolist() == permute(positions[::-1], length, 1, 2).tolist()


def test_epochs_and_seeds_differ():
    orders = {tuple(permute(np.arange(50), 50, s, e).tolist()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize(
    ("length", "start", "count"), [(7, 0, 20), (7, 13, 9), (1, 5, 4), (40, 39, 60), (50, 120, 10)]
)
def test_epochs_follow_each_other_each_in_its_own_order(length, start, count):
    positions = np.arange(start, start + count)
    items = permute_epochs(positions, length, 8, 9)
    expected = [
        permute(np.array([place % length]), length, 8, 9, place // length).item()
        for place in positions.tolist()
    ]
    assert items.tolist() == expected


def test_no_two_epochs_have_one_order():
    orders = permute_epochs(np.arange(50 * 20), 50, 3).reshape(20, 50)
    assert len({tuple(order) for order in orders.tolist()}) == 20


@pytest.mark.parametrize("count", [12, 60])
def test_orders_look_like_chance(count):
    """Where item i lands, over many keys, against the uniform law (chi-square, 5 sigma)."""
    keys = 1000
    orders = np.stack([permute(np.arange(count), count, 9, k) for k in range(keys)])
    for position in range(count):
        seen = np.bincount(orders[:, position], minlength=count)
        chi2 = ((seen - keys / count) ** 2 / (keys / count)).sum()
        assert chi2 < (count - 1) + 5 * np.sqrt(2 * (count - 1))
    followers = (np.diff(orders, axis=1) == 1).mean()  # neighbours stay neighbours: 1 in `count`
    assert followers == pytest.approx(1 / count, abs=5 / count / keys**0.5)


def test_mix_is_the_finaliser_of_splitmix64():
    """The reference's first outputs for seed 0: state advances by the golden constant."""
    golden = 0x9E3779B97F4A7C15
    state = np.array([0], np.uint64)

    def reference(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    for step in range(1, 5):
        assert int(mix(state, step)[0]) == reference(step * golden % 2**64)
    assert int(mix(state, 1)[0]) == 0xE220A8397B1DCDAF  # published first value of splitmix64(0)


@pytest.mark.parametrize(("positions", "length"), [([0], 0), ([5], 5), ([-1], 5)])
def test_positions_outside_are_refused(positions, length):
    with pytest.raises(ValueError, match=r"must be in|at least one"):
        permute(np.array(positions), length, 0)

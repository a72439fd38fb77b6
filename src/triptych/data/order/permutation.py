"""A random order of any number of items, computed position by position instead of stored.

Shuffling a list needs the list and the state of a generator. Here the item at position `p` of an
epoch is a function of (seed, epoch, p), so training resumes at any step at no cost and all workers
agree.
"""

import math

import numpy as np
from jaxtyping import Int64, UInt64

from triptych.runtime import key

ROUNDS = 6
SMALL, SMALL_ROUNDS = 1024, 12  # short orders need more rounds before they look random
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, as in splitmix64


def mix(values: UInt64[np.ndarray, " n"], salt: int) -> UInt64[np.ndarray, " n"]:
    """Hash 64-bit numbers (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    mixed = (values + np.uint64(salt)) * np.uint64(GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def permute(positions: Int64[np.ndarray, " n"], length: int, *keys: int) -> Int64[np.ndarray, " n"]:
    """The items at these positions of a random order of `range(length)` that the keys choose.

    A Feistel network over two digits of mixed radix, with cycle walking for the few values that
    fall outside the range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). It is
    a permutation: every item is at exactly one position.

    Raises:
        ValueError: no items, or a position outside [0, length).
    """
    if length < 1:
        raise ValueError(f"there must be at least one item to order, not {length}")
    if ((positions < 0) | (positions >= length)).any():
        raise ValueError(f"positions must be in [0, {length}), not {positions}")
    side = math.isqrt(length - 1) + 1
    low, high = np.uint64(side), np.uint64(-(-length // side))  # low * high - length < low
    salt, rounds = key(*keys), ROUNDS if length > SMALL else SMALL_ROUNDS
    salts = [key(salt, number) for number in range(rounds)]

    def encrypt(values: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
        left, right = np.divmod(values, low)
        for number in range(0, rounds, 2):
            left = np.mod(left + np.mod(mix(right, salts[number]), high), high)
            right = np.mod(right + np.mod(mix(left, salts[number + 1]), low), low)
        return left * low + right

    items = encrypt(positions.astype(np.uint64))
    outside = items >= length
    while outside.any():
        items[outside] = encrypt(items[outside])
        outside = items >= length
    return items.astype(np.int64)


def permute_epochs(
    positions: Int64[np.ndarray, " n"], length: int, *keys: int
) -> Int64[np.ndarray, " n"]:
    """The items at these positions of an endless sequence of epochs: `range(length)` again and
    again, each time in another order.
    """
    items = np.empty_like(positions)
    for epoch in range(int(positions.min()) // length, int(positions.max()) // length + 1):
        here = positions // length == epoch
        items[here] = permute(positions[here] % length, length, *keys, int(epoch))
    return items

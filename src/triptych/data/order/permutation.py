"""An order for any number of items that is computed, not stored.

Shuffling a list needs the list and the state of a generator. Here item `p` of a shuffled epoch is a
function of (seed, epoch, p), so training continues at any step at no cost and every worker agrees.
"""

import math

import numpy as np
from jaxtyping import Int64, UInt64

from triptych.runtime import key

ROUNDS, ROUNDS_OF_FEW = 6, 12  # with two digits of only a few values, structure dies out slowly
FEW = 1024
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, as in splitmix64


def mix(values: UInt64[np.ndarray, " n"], salt: int) -> UInt64[np.ndarray, " n"]:
    """Hash 64-bit numbers (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    mixed = (values + np.uint64(salt)) * np.uint64(GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def permute(positions: Int64[np.ndarray, " n"], length: int, *keys: int) -> Int64[np.ndarray, " n"]:
    """The items at these positions of a keyed random order of `range(length)`.

    A Feistel network over two digits of mixed radix, which needs no power of two, and cycle walking
    for the few values that fall outside (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains"). Two positions never give the same item.
    """
    if length < 1:
        raise ValueError(f"an order needs at least one item, not {length}")
    if ((positions < 0) | (positions >= length)).any():
        raise ValueError(f"positions must be in [0, {length}), not {positions}")
    side = math.isqrt(length - 1) + 1
    low, high = np.uint64(side), np.uint64(-(-length // side))  # low * high - length < low
    salt, rounds = key(*keys), ROUNDS if length > FEW else ROUNDS_OF_FEW
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


def walk(positions: Int64[np.ndarray, " n"], length: int, *keys: int) -> Int64[np.ndarray, " n"]:
    """The items at these positions of an endless sequence: epoch after epoch `range(length)`, each
    in an order of its own.
    """
    items = np.empty_like(positions)
    for epoch in range(int(positions.min()) // length, int(positions.max()) // length + 1):
        here = positions // length == epoch
        items[here] = permute(positions[here] % length, length, *keys, int(epoch))
    return items

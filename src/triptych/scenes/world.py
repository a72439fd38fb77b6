"""The built-in world: endless seeded scenes.

A scene is a pure function of (seed, split, index, difficulty), the same on every machine: its
random numbers are hashes of a counter.

    train, test   the same distribution, but never the same scene: the x coordinate of every object
                  is an even number of 1/1024 of the side in `train`, an odd one in the other splits
    held-out      only pairs of shape and colour that occur in no other split
    line          as `test`, as line drawings
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from triptych.fields import nearest
from triptych.scenes.drawing import GROUND_SHADE, SHADE, mix, uniform
from triptych.scenes.scene import (
    GROUND_COLOURS,
    HELD_OUT,
    PATTERNS,
    RADII,
    SEEN,
    SIZES,
    TEXTURES,
    Ground,
    Scene,
    Thing,
)

WORLD_VERSION = 2
"""Reported with every result; changes with any picture, caption or answer."""

Split = Literal["train", "test", "held-out", "line"]
Difficulty = Literal["one", "two", "four"]
SPLITS: tuple[Split, ...] = get_args(Split)
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)

GRID = 1024  # positions and radii are whole numbers of 1 / GRID
GAP = 0.05  # least distance between the discs of two objects
MARGIN = 0.02  # least distance between a disc and the border
SWEEPS = 16  # how often each object may move
NEARBY = 0.12  # the largest distance of a short move, along each axis

# Columns of a scene's random numbers: some for the scene, ten for each object, then the positions.
COUNT, GROUND, TEXTURE, TURN, SHADES, THINGS = 0, 1, 2, 3, 4, 8
PAIR, SAME, SIZE, RADIUS, PATTERN, SHADE_AT, PER_THING = 0, 1, 2, 3, 4, 5, 10
PLACED = 1 << 16


def scene(seed: int, index: int, split: Split = "train", difficulty: Difficulty = "four") -> Scene:
    """One scene of the endless world; equal arguments give equal scenes.

    Args:
        seed: of the world.
        index: from 0, without an upper limit.
        difficulty: `one` object, `two`, or one to `four`.

    Raises:
        ValueError: an unknown split or difficulty, or a negative index.
    """
    return scenes(seed, [index], split, difficulty)[0]


def scenes(
    seed: int, indices: Sequence[int], split: Split = "train", difficulty: Difficulty = "four"
) -> list[Scene]:
    """Many scenes at once, equal to those of `scene` and many times as fast."""
    require_one_of("split", split, SPLITS)
    require_one_of("difficulty", difficulty, DIFFICULTIES)
    if len(indices) == 0:
        return []
    if min(indices) < 0:
        raise ValueError(f"an index must be at least 0, not {min(indices)}")
    start = np.array([seed & (2**64 - 1), SPLITS.index(split)], dtype=np.uint64)
    start = mix(mix(start[:1]) + start[1:])
    keys = mix(start + np.array(indices, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    u = uniform(keys, THINGS + 4 * PER_THING)
    each = u[:, THINGS:].reshape(len(keys), 4, PER_THING)
    counts = {"one": 1, "two": 2}.get(difficulty) or 1 + (4 * u[:, COUNT]).astype(int)
    counts = np.broadcast_to(counts, len(keys))
    radii = _radii(each, counts)
    x, y = _places(keys, radii, counts, odd=split != "train")
    pairs = HELD_OUT if split == "held-out" else SEEN
    chosen = (each[..., PAIR] * len(pairs)).astype(int)
    same = each[..., SAME] < 0.3  # sometimes like the first object, for counting
    chosen = np.where(same, chosen[:, :1], chosen)
    shades = np.rint((each[..., SHADE_AT : SHADE_AT + 3] * 2 - 1) * SHADE)
    ground_shades = np.rint((u[:, SHADES : SHADES + 3] * 2 - 1) * GROUND_SHADE)
    patterns = (each[..., PATTERN] * 3).astype(int)
    numbers = zip(
        keys.tolist(), counts.tolist(), u[:, : TURN + 1].tolist(), ground_shades.tolist(),
        chosen.tolist(), patterns.tolist(), radii.tolist(), x.tolist(), y.tolist(), shades.tolist(),
        strict=True,
    )  # fmt: skip
    small = int(RADII["small"][1] * GRID) + 1
    return [
        Scene(
            tuple(
                Thing(
                    pairs[chosen[j]][0],
                    pairs[chosen[j]][1],
                    SIZES[radius[j] > small],
                    PATTERNS[pattern[j]],
                    x[j] / GRID,
                    y[j] / GRID,
                    radius[j] / GRID,
                    tuple(shade[j]),
                )
                for j in range(count)
            ),
            Ground(
                GROUND_COLOURS[int(4 * v[GROUND])],
                TEXTURES[int(4 * v[TEXTURE])],
                int(4 * v[TURN]),
                tuple(ground_shade),
            ),
            "line" if split == "line" else "painted",
            key,
        )
        for key, count, v, ground_shade, chosen, pattern, radius, x, y, shade in numbers
    ]


def require_one_of(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        hint = nearest(name, names)
        raise ValueError(f"{what} must be one of {', '.join(names)}, not {name!r}.{hint}")


def _radii(
    each: Float[np.ndarray, "B 4 U"], counts: Int[np.ndarray, " B"]
) -> Int[np.ndarray, "B 4"]:
    """Radii in grid units, largest first; at most two of three or four objects are large."""
    large = (each[..., SIZE] < 0.5) & (np.arange(4) < counts[:, None])
    large &= (large.cumsum(axis=1) <= 2) | (counts[:, None] < 3)
    low, high = (np.where(large, RADII["large"][k], RADII["small"][k]) * GRID for k in (0, 1))
    radii = np.ceil(low) + np.floor(each[..., RADIUS] * (np.floor(high) - np.ceil(low) + 1))
    radii = np.where(np.arange(4) < counts[:, None], radii, 0)
    return -np.sort(-radii, axis=1).astype(int)


def _places(
    keys: np.ndarray, radii: Int[np.ndarray, "B 4"], counts: Int[np.ndarray, " B"], odd: bool
) -> tuple[Int[np.ndarray, "B 4"], Int[np.ndarray, "B 4"]]:
    """Centres in grid units, with at least the gap between any two discs.

    Metropolis sampling: objects start in the corners, where there is always room; then each in turn
    is proposed another position, anywhere or nearby, and takes it if it is free. Rejecting whole
    arrangements would be uniform too, but needs thousands of attempts for two large objects.
    """
    u = uniform(keys, 2 + SWEEPS * 8, PLACED)
    low = np.stack([(radii + int(MARGIN * GRID) + 1) // 2, radii + int(MARGIN * GRID)], axis=-1)
    high = np.array([GRID // 2, GRID]) - low - np.array([int(odd), 0])  # x counts in steps of two
    corner = np.array([[0, 0], [1, 1], [0, 1], [1, 0]])  # the two largest lie on a diagonal
    corner = corner ^ (u[:, None, :2] < 0.5)
    place = np.where(corner, high, low)  # (B, 4, 2)
    moves = u[:, 2:].reshape(-1, SWEEPS, 4, 2)
    anywhere = low[:, None] + (moves[:, 0::2] * (high - low + 1)[:, None]).astype(int)
    nearby = ((moves[:, 1::2] * 2 - 1) * NEARBY * np.array([GRID / 2, GRID])).astype(int)
    apart = radii[:, :, None] + radii[:, None, :] + int(GAP * GRID) + 1
    there = np.arange(4) < counts[:, None]
    apart = np.where(there[:, None, :] & ~np.eye(4, dtype=bool), apart, 0) ** 2
    scale = np.array([2, 1])
    for sweep in range(SWEEPS):
        for j in range(int(counts.max())):
            if sweep % 2:
                offered = np.clip(place[:, j] + nearby[:, sweep // 2, j], low[:, j], high[:, j])
            else:
                offered = anywhere[:, sweep // 2, j]
            away = (place - offered[:, None]) * scale
            away *= away
            free = (away[..., 0] + away[..., 1] >= apart[:, j]).all(axis=1)
            place[:, j] = np.where(free[:, None], offered, place[:, j])
    return place[..., 0] * 2 + int(odd), place[..., 1]

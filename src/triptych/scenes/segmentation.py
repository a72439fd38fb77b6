"""Segments a picture of the built-in world into its ground and the regions in front of it.

Dimensions: S side of the picture, P pixels of the ground, R runs of a region.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

from triptych.scenes.drawing import CONTRAST, GROUND_PAINT, relief_of, shading
from triptych.scenes.scene import GROUND_COLOURS, GroundColour, Texture

LARGEST = 128  # larger pictures are averaged down to this side
TOGETHER = 14.0  # minimum covariance of neighbouring pixels in a grainy ground
RELIEF = 30.0  # how much darker or lighter than its colour a ground may be, of 255
GROUNDS = np.array([GROUND_PAINT[c] for c in GROUND_COLOURS], dtype=np.float32)  # (4, 3)


def pixels_of(picture: Any) -> Float32[np.ndarray, "3 S S"]:
    """The picture as planes of 0 to 255."""
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or array.shape[0] != array.shape[1]:
        raise ValueError(f"a picture must be square with 3 channels, not {np.shape(picture)}")
    side = len(array)
    if not 32 <= side <= 512:
        raise ValueError(f"a picture must have 32 to 512 pixels per side, not {side}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("a picture must not contain NaN or infinity")
        array = np.clip(array * 127.5 + 127.5, 0, 255)
    elif array.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 or floats in [-1, 1], not {array.dtype}")
    if side > LARGEST:
        image = Image.fromarray(np.rint(array).astype(np.uint8))
        array = np.asarray(image.resize((LARGEST, LARGEST), Image.Resampling.BOX))
    return np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32)


def off_gray(away: Float32[np.ndarray, "3 H W"], relief: float) -> Float32[np.ndarray, "H W"]:
    """Squared distance to the ground's colour, ignoring brightness differences up to `relief`."""
    red, green, blue = away
    total = red + green + blue
    excess = np.maximum(np.abs(total) - 3 * relief, 0)
    squared = red * red + green * green + blue * blue + (excess * excess - total * total) / 3
    return np.asarray(squared)


def ground_of(
    pixels: Float32[np.ndarray, "3 S S"],
) -> tuple[GroundColour, Texture, Float32[np.ndarray, "3 S S"]] | None:
    """The ground's colour, its texture, and the ground as a picture without objects; None if no
    ground is recognised.
    """
    sparse = max(1, pixels.shape[1] // 20)
    coarse = pixels[:, ::sparse, ::sparse].reshape(3, 1, -1) - GROUNDS.T[..., None]  # (3, 4, P)
    number = int((off_gray(coarse, RELIEF) < 20**2).sum(axis=1).argmax())
    away = pixels - GROUNDS[number][:, None, None]
    bare = off_gray(away, RELIEF) < 20**2
    if bare.mean() < 0.15:
        return None
    bare = erode(erode(bare)) if bare.mean() > 0.3 else erode(bare)
    bare_pixels = float(bare.sum())
    if not bare_pixels:
        return None
    mean = away.reshape(3, -1) @ bare.ravel() / bare_pixels
    lighter = (away.sum(axis=0) / 3 - mean.mean()) * bare
    texture, relief = _texture(lighter, bare)
    if relief is None:
        behind = np.broadcast_to((GROUNDS[number] + mean)[:, None, None], pixels.shape)
    else:
        level = GROUNDS[number] + mean - float((relief * bare).sum()) / bare_pixels
        behind = relief + level[:, None, None]
    return GROUND_COLOURS[number], texture, behind.astype(np.float32)


def _texture(
    lighter: Float32[np.ndarray, "S S"], bare: Bool[np.ndarray, "S S"]
) -> tuple[Texture, Float32[np.ndarray, "S S"] | None]:
    """The texture and, if it is regular, by how much it lightens each pixel.

    `lighter` is 0 where the ground is covered.
    """
    side = len(lighter)
    folds = shading(side)
    per_row, per_column = bare.sum(axis=1), bare.sum(axis=0)
    n, x, y = bare.sum(), per_column @ folds, per_row @ folds
    xx, yy, xy = per_column @ folds**2, per_row @ folds**2, folds @ bare @ folds
    normal = np.array([[n, x, y], [x, xx, xy], [y, xy, yy]]) + 1e-3 * np.eye(3)
    sums = lighter.sum(axis=0), lighter.sum(axis=1)
    _, across, down = np.linalg.solve(normal, [sums[0].sum(), sums[0] @ folds, sums[1] @ folds])
    if max(abs(across), abs(down)) > CONTRAST["shaded"] / 2:
        if abs(across) > abs(down):
            return "shaded", np.broadcast_to(folds * np.float32(across), lighter.shape)
        return "shaded", np.broadcast_to(folds[:, None] * np.float32(down), lighter.shape)
    board = relief_of("checked", 0, side)
    squares = float((board * lighter).sum() / max(1.0, float((board * board * bare).sum())))
    if abs(squares) > CONTRAST["checked"] / 2:
        return "checked", board * np.float32(squares)
    # Neighbouring pixels of a grainy ground are correlated, those of noise are not.
    pairs = (bare[:, 1:] & bare[:, :-1]).sum() + (bare[1:] & bare[:-1]).sum()
    together = (lighter[:, 1:] * lighter[:, :-1]).sum() + (lighter[1:] * lighter[:-1]).sum()
    return ("grainy" if together > TOGETHER * max(1, pairs) else "plain"), None


def erode(mask: Bool[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
    """Erode a mask by one pixel; pixels outside the picture count as inside the mask."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner


@dataclass(frozen=True)
class Region:
    """Connected pixels as runs: row, first column, and the column after the last."""

    runs: Int[np.ndarray, "R 3"]
    top: int
    bottom: int
    left: int
    right: int


def regions(mask: Bool[np.ndarray, "S S"], least: float) -> list[Region]:
    """The 8-connected components of a mask that have at least `least` pixels."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    above = 0  # the first run of the row above that may still touch
    for n, (row, start, end) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        other = above
        while runs[other][0] == row - 1 and runs[other][1] <= end:
            parents[root(other)] = root(n)
            other += 1
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for n, run in enumerate(runs):
        groups.setdefault(root(n), []).append(run)
    large = []
    for group in groups.values():
        table = np.array(group)
        if (table[:, 2] - table[:, 1]).sum() >= least:
            large.append(
                Region(
                    table, int(table[0, 0]), int(table[-1, 0]) + 1,
                    int(table[:, 1].min()), int(table[:, 2].max()),
                )
            )  # fmt: skip
    return large

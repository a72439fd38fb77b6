"""Recognises objects and ground in a picture of the built-in world, to judge generated pictures.

The picture is segmented into ground and connected regions. Each region is then fitted: shape,
pattern, colour, position and radius are chosen so that drawing them again gives the smallest error.
A region is an object only if that error is as small as for 99.9 % of the objects of true pictures
(`DISTANCE`); otherwise it is counted as unread, and no caption is true of such a picture. Line
drawings are not supported.

Dimensions: S side of the picture, H and W a window, P pixels of a region.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from triptych.scenes.drawing import PAINT, SHADE
from triptych.scenes.geometry import EXTENT, coverage, ink, signed_distance
from triptych.scenes.scene import (
    COLOURS,
    PATTERNS,
    RADII,
    SHAPES,
    GroundColour,
    Pattern,
    Shape,
    Size,
    Texture,
    Thing,
)
from triptych.scenes.segmentation import (
    RELIEF,
    Region,
    erode,
    ground_of,
    off_gray,
    pixels_of,
    regions,
)

READER_VERSION = 2
"""Reported with every result, beside the version of the world."""

DISTANCE = ((32, 0.064), (64, 0.042), (128, 0.039))
"""For a side in pixels, the 99.9 % quantile of the distance of true objects, over 3,000 scenes:
`python benchmarks/scenes.py --calibrate --pictures 3000`."""

SURE = 0.5  # a quick fit below this share of the threshold is final
FOREGROUND = 36.0  # colour distance to the ground, of 255, above which a pixel is foreground
SPECK = 0.0015  # regions smaller than this share of the picture are ignored
SOFTNESS = (1.0, 2.0)  # edge widths in pixels to try: as drawn, and blurred by half a pixel
MAX_SHADE = 1.25 * SHADE  # limit of a fitted shade, a little more than the world's own
BORDER = (RADII["small"][1] + RADII["large"][0]) / 2  # radius between small and large

PALETTE = np.array([PAINT[c][0] for c in COLOURS], dtype=np.float32)  # (8, 3)
INKED = np.array([PAINT[c][1] for c in COLOURS], dtype=np.float32) - PALETTE
BOXES = np.array([EXTENT[s] for s in SHAPES])  # (8, 4)


@cache
def shape_moments() -> tuple[np.ndarray, np.ndarray]:
    """Area in squared radii and centre of mass in radii of each shape."""
    axis = ((np.arange(256) + 0.5) / 128 - 1).astype(np.float32)
    areas, centres = [], []
    for shape in SHAPES:
        inside = coverage(signed_distance(shape, axis[None, :], axis[:, None]), 128)
        areas.append(inside.sum() / 128**2)
        centres.append(((inside.sum(0) @ axis), (inside.sum(1) @ axis)) / inside.sum())
    return np.array(areas), np.array(centres)


@dataclass(frozen=True)
class Reading:
    """The content of a picture. An object's `shade` is the difference to its pure colour."""

    things: tuple[Thing, ...]
    distances: tuple[float, ...]
    """The mean error of each redrawn object over its mean contrast."""
    unread: int
    """The number of regions that are neither ground nor an object."""
    ground: GroundColour | None
    texture: Texture | None


def threshold(side: int) -> float:
    """The 99.9 % quantile of true objects' distance at this side; see `DISTANCE`."""
    sides, values = zip(*DISTANCE, strict=True)
    return float(np.interp(math.log(side), np.log(sides), values))


def read(picture: Any) -> Reading:
    """Recognise the objects of a picture, with attributes and positions, and its ground.

    Args:
        picture: square, 32 to 512 pixels a side; uint8 with the channels last, or floats in [-1, 1]
            with the channels first or last.

    Raises:
        ValueError: another shape, type or size.
    """
    return apply_threshold(*match_regions(picture))


def apply_threshold(
    matches: Sequence[tuple[Thing, float] | None],
    colour: GroundColour | None,
    texture: Texture | None,
    side: int,
) -> Reading:
    """The result of `match_regions` as a reading: a match that is too far off is no object."""
    close = [match for match in matches if match is not None and match[1] <= threshold(side)]
    things, distances = tuple(t for t, _ in close), tuple(d for _, d in close)
    return Reading(things, distances, len(matches) - len(close), colour, texture)


def match_regions(
    picture: Any,
) -> tuple[list[tuple[Thing, float] | None], GroundColour | None, Texture | None, int]:
    """The best object for each region with its distance; the ground's colour and texture; the side.

    This is `read` before the threshold, and how `DISTANCE` was measured. A region that cannot be an
    object is None, and so is the only region of a picture without a recognised ground. The side is
    that of the picture as it was processed: at most 128.
    """
    pixels = pixels_of(picture)
    side = pixels.shape[1]
    ground = ground_of(pixels)
    if ground is None:
        return [None], None, None, side
    colour, texture, behind = ground
    away = pixels - behind
    mask = off_gray(away, RELIEF if texture == "grainy" else RELIEF / 2) > FOREGROUND**2
    parts = regions(mask, SPECK * side * side)
    return [_match(away, behind, mask, part) for part in parts], colour, texture, side


Pose = tuple[Shape, float, float, float]


@dataclass(frozen=True)
class Patch:
    """A region in a window with a margin of two pixels, without the pixels of other regions."""

    number: int
    """The index of the region's colour."""
    away: Float32[np.ndarray, "3 P"]
    """The difference of the pixels to the ground."""
    contrast: Float32[np.ndarray, "3 P"]
    """The difference of a plain object of that colour to the ground."""
    kept: Int[np.ndarray, " P"]
    """The indices of these pixels in the window."""
    own: Bool[np.ndarray, "H W"]
    """The pixels of the region."""
    inner: Bool[np.ndarray, "H W"]
    """The region without its outline."""
    across: Float32[np.ndarray, "1 W"]
    """Pixel centres, in pixels of the picture."""
    down: Float32[np.ndarray, "H 1"]


def _patch(away: np.ndarray, behind: np.ndarray, mask: np.ndarray, region: Region) -> Patch:
    side = len(mask)
    top, left = max(0, region.top - 2), max(0, region.left - 2)
    bottom, right = min(side, region.bottom + 2), min(side, region.right + 2)
    window = slice(top, bottom), slice(left, right)
    own = np.zeros((bottom - top, right - left), dtype=bool)
    for row, start, end in region.runs.tolist():
        own[row - top, start - left : end - left] = True
    others = mask[window] & ~own
    kept = np.flatnonzero(erode(~others) | own)
    inner = erode(own)
    away = away[:, *window].reshape(3, -1).take(kept, axis=1)
    behind = behind[:, *window].reshape(3, -1).take(kept, axis=1)
    chosen = np.flatnonzero((inner if inner.sum() >= 12 else own).ravel()[kept])
    number = _colour(away.take(chosen, axis=1) + behind.take(chosen, axis=1))
    return Patch(
        number,
        away,
        PALETTE[number][:, None] - behind,
        kept,
        own,
        inner,
        np.arange(left, right, dtype=np.float32)[None, :] + 0.5,
        np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5,
    )


def _match(
    away: np.ndarray, behind: np.ndarray, mask: np.ndarray, region: Region
) -> tuple[Thing, float] | None:
    """The object that fits a region best, and its distance; None if it cannot be an object."""
    side = len(mask)
    if max(region.bottom - region.top, region.right - region.left) > 0.56 * side + 2:
        return None
    patch = _patch(away, behind, mask, region)
    likely, poses = _poses(patch)
    if not poses:
        return None
    quick = _best(patch, likely, side, 2, SOFTNESS[:1])
    if quick[1] <= threshold(side) * SURE:
        return quick
    sharp = _best(patch, likely, side, 5, SOFTNESS[:1])
    if sharp[1] <= threshold(side):
        return _nearest(quick, sharp)
    soft = _best(patch, likely, side, 5, SOFTNESS[1:])
    if soft[1] <= threshold(side):
        return _nearest(quick, soft)
    # None of the likely shapes fits: try all.
    _, pose = min((_fit(patch, pose, side, 2, SOFTNESS[0])[1], pose) for pose in poses)
    return _nearest(sharp, soft, _best(patch, [pose], side, 5, SOFTNESS))


def _nearest(*fits: tuple[Thing, float]) -> tuple[Thing, float]:
    return min(fits, key=lambda fit: fit[1])


def _best(
    patch: Patch, poses: list[Pose], side: int, steps: int, softness: tuple[float, ...]
) -> tuple[Thing, float]:
    return _nearest(*(_fit(patch, pose, side, steps, soft) for pose in poses for soft in softness))


def _colour(pixels: Float32[np.ndarray, "3 _"]) -> int:
    """The index of the colour that is nearest to these pixels, whether in a pattern or not."""
    pixels = pixels[:, :: max(1, pixels.shape[1] // 150)]
    along = INKED @ pixels - (INKED * PALETTE).sum(axis=1)[:, None]  # (8, P)
    inked = (INKED * INKED).sum(axis=1)[:, None]
    part = np.minimum(np.maximum(along / inked, 0), 1)
    squared = _dot(pixels, pixels) - 2 * PALETTE @ pixels + (PALETTE * PALETTE).sum(axis=1)[:, None]
    squared += part * (part * inked - 2 * along)
    return int(np.minimum(squared, 60**2).mean(axis=1).argmin())


def _poses(patch: Patch) -> tuple[list[Pose], list[Pose]]:
    """The one or two shapes with the best silhouettes, and all shapes; centres and radii in pixels.

    Area and centre of mass determine radius and centre for each shape; the bounding box then
    selects the shapes that are worth drawing.
    """
    along = _dot(patch.away, patch.contrast) / _dot(patch.contrast, patch.contrast)
    filled = np.zeros(patch.own.shape, dtype=np.float32)
    filled.ravel()[patch.kept] = np.minimum(np.maximum(along, 0), 1)
    filled[patch.inner] = 1
    filled[filled < 0.15] = 0
    per_column, per_row = filled.sum(axis=0), filled.sum(axis=1)
    area = float(per_row.sum())
    if area < 4:
        return [], []
    areas, centres = shape_moments()
    radii = np.sqrt(area / areas)
    xs = float(per_column @ patch.across[0]) / area - centres[:, 0] * radii
    ys = float(per_row @ patch.down[:, 0]) / area - centres[:, 1] * radii
    columns, rows = patch.across[0, per_column > 0], patch.down[per_row > 0, 0]
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
    expected = BOXES * radii[:, None] + np.stack([xs, ys, xs, ys], axis=1)
    order = np.abs(expected - box).sum(axis=1).argsort().tolist()
    poses = [(SHAPES[n], float(xs[n]), float(ys[n]), float(radii[n])) for n in order]
    scored = []
    for shape, x, y, radius in poses[:3]:
        across, down = (patch.across - x) / radius, (patch.down - y) / radius
        silhouette = coverage(signed_distance(shape, across, down), radius)
        scored.append((float(np.abs(silhouette - filled).sum()), (shape, x, y, radius)))
    scored.sort()
    sure = scored[1][0] > 1.5 * scored[0][0] + 0.02 * area
    return [pose for _, pose in scored[: 1 if sure else 2]], poses


def _fit(patch: Patch, pose: Pose, side: int, steps: int, soft: float) -> tuple[Thing, float]:
    """Fit position, radius and shade by Gauss-Newton steps, with the best pattern."""
    shape, x, y, radius = pose
    pattern: Pattern | None = None
    for step in range(steps):
        across, down = (patch.across - x) / radius, (patch.down - y) / radius
        distance = signed_distance(shape, across, down)
        covered = coverage(distance, radius / soft).ravel()[patch.kept]
        if pattern is None or step == 2:
            pattern = _pattern(patch, covered, across, down, radius / soft)
        inked = _inked(patch, pattern, across, down, radius / soft)
        _, error, contrast = _redraw(patch, covered, inked)
        moved = _step(patch, distance * (radius / soft), error, contrast, x, y)
        x, y = x + min(max(moved[0], -2), 2) * soft, y + min(max(moved[1], -2), 2) * soft
        radius *= math.exp(min(max(moved[2] * soft, -0.2), 0.2))
    size: Size = "large" if radius / side > BORDER else "small"
    low, high = RADII[size]
    radius = min(max(radius, low * side), high * side)  # the nearest radius that occurs
    across, down = (patch.across - x) / radius, (patch.down - y) / radius
    distance = signed_distance(shape, across, down)
    covered = coverage(distance, radius / soft).ravel()[patch.kept]
    pattern = pattern or _pattern(patch, covered, across, down, radius / soft)
    inked = _inked(patch, pattern, across, down, radius / soft)
    shade, error, contrast = _redraw(patch, covered, inked)
    red, green, blue = shade.ravel().tolist()
    thing = Thing(
        shape, COLOURS[patch.number], size, pattern, x / side, y / side, radius / side,
        (red, green, blue),
    )  # fmt: skip
    return thing, _distance(patch, covered, error, contrast)


def _inked(
    patch: Patch, pattern: Pattern, across: np.ndarray, down: np.ndarray, pixels: float
) -> Float32[np.ndarray, " P"] | None:
    if pattern == "plain":
        return None
    inked: np.ndarray = ink(pattern, across, down, pixels).ravel()[patch.kept]
    return inked


def _pattern(
    patch: Patch, covered: np.ndarray, across: np.ndarray, down: np.ndarray, pixels: float
) -> Pattern:
    """The pattern with the smallest squared error.

    A pattern and its best shade change the error linearly, so the squares of all patterns follow
    from a few sums over the pixels.
    """
    plain = patch.away - covered * patch.contrast  # (3, P)
    layers = np.zeros((len(PATTERNS), len(covered)), dtype=np.float32)
    for layer, pattern in zip(layers, PATTERNS, strict=True):
        if (inked := _inked(patch, pattern, across, down, pixels)) is not None:
            np.multiply(covered, inked, out=layer)
    tone, weight = INKED[patch.number], max(1e-6, float(covered @ covered))
    left = (plain @ covered)[:, None] - tone[:, None] * (layers @ covered)  # for the shade
    shade = np.minimum(np.maximum(left / weight, -MAX_SHADE), MAX_SHADE)
    squares = (tone @ tone) * (layers * layers).sum(axis=1) - 2 * tone @ (plain @ layers.T)
    squares += (shade * (shade * weight - 2 * left)).sum(axis=0)
    return PATTERNS[int(squares.argmin())]


def _redraw(
    patch: Patch, covered: Float32[np.ndarray, " P"], inked: Float32[np.ndarray, " P"] | None
) -> tuple[Float32[np.ndarray, "3 1"], Float32[np.ndarray, "3 P"], Float32[np.ndarray, "3 P"]]:
    """The best shade, the error that remains, and the object's contrast to the ground."""
    contrast = patch.contrast
    if inked is not None:
        contrast = contrast + inked * INKED[patch.number][:, None]
    error = patch.away - covered * contrast
    shade = (error @ covered / max(1e-6, float(covered @ covered)))[:, None]
    shade = np.minimum(np.maximum(shade, -MAX_SHADE), MAX_SHADE)  # faster than clip
    error -= covered * shade
    return shade, error, contrast + shade


def _step(
    patch: Patch, distance: np.ndarray, error: np.ndarray, contrast: np.ndarray, x: float, y: float
) -> list[float]:
    """The change of x, y and log radius, in pixels, that explains the error along the outline."""
    flat, (height, width) = distance.ravel(), distance.shape
    near = np.abs(flat[patch.kept])
    edge = np.flatnonzero(near < 1)
    pixel = patch.kept[edge]
    row, column = np.divmod(pixel, width)
    change = np.empty((3, len(edge)), dtype=np.float32)  # of the coverage
    for i, (stride, place, last) in enumerate(((1, column, width - 1), (width, row, height - 1))):
        after, before = (flat.take(pixel + d, mode="clip") for d in (stride, -stride))
        change[i] = (after - before) * ((place > 0) & (place < last))  # zero at the window's border
    change[2] = change[0] * (patch.across[0, column] - x) + change[1] * (patch.down[row, 0] - y)
    # An edge exactly between two pixels covers neither of them partly, so pixels up to one pixel
    # away count a little.
    change *= np.float32(0.5) - np.float32(0.35) * (near[edge] >= 0.5)
    contrast, error = contrast.take(edge, axis=1), error.take(edge, axis=1)
    normal = (change * _dot(contrast, contrast)) @ change.T
    return _solve(normal.tolist(), (change @ _dot(error, contrast)).tolist())


def _solve(normal: list[list[float]], right: list[float]) -> list[float]:
    """Solve three damped normal equations by Cramer's rule, faster than numpy for so few."""
    (a, b, c), (_, e, f), (_, _, i) = normal
    damping = 1e-3 * (a + e + i) + 1e-6
    a, e, i = a + damping, e + damping, i + damping
    x, y, z = right
    ei, cf, bf = e * i - f * f, c * f - b * i, b * f - c * e  # cofactors of a symmetric matrix
    ai, af, ae = a * i - c * c, b * c - a * f, a * e - b * b
    det = a * ei + b * cf + c * bf
    return [
        (ei * x + cf * y + bf * z) / det,
        (cf * x + ai * y + af * z) / det,
        (bf * x + af * y + ae * z) / det,
    ]


def _dot(one: Float32[np.ndarray, "3 _"], other: Float32[np.ndarray, "3 _"]) -> np.ndarray:
    """The dot product over the channels of each pixel."""
    products = one * other
    return np.asarray(products[0] + products[1] + products[2])


def _distance(patch: Patch, covered: np.ndarray, error: np.ndarray, contrast: np.ndarray) -> float:
    """The mean error over the mean contrast; the error is averaged over 3 x 3 pixels, so that noise
    counts only a third.
    """
    there = (covered > 0) | patch.own.ravel()[patch.kept]
    height, width = patch.own.shape
    padded = np.zeros((3, height + 2, width + 2), dtype=np.float32)
    row, column = np.divmod(patch.kept, width)
    padded[:, row + 1, column + 1] = error * there
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    drawing = covered * contrast
    lost, shown = (
        np.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]).sum() for a in (smooth, drawing)
    )
    return float(lost / max(shown, 1e-6))

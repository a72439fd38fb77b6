"""Draws scenes of the built-in world: pictures, masks and boxes.

Dimensions: S side of the picture in pixels, N objects, H and W a window of it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from triptych.scenes.geometry import EXTENT, STROKE, coverage, ink, signed_distance
from triptych.scenes.scene import (
    COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    Colour,
    Ground,
    GroundColour,
    Scene,
    Texture,
    Thing,
)

PAINT: dict[Colour, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((222, 45, 45), (255, 175, 160)),
    "orange": ((245, 135, 30), (145, 55, 0)),
    "yellow": ((246, 214, 50), (150, 110, 0)),
    "green": ((50, 160, 75), (165, 240, 150)),
    "cyan": ((60, 200, 215), (0, 90, 115)),
    "blue": ((45, 85, 220), (165, 190, 255)),
    "purple": ((145, 65, 195), (205, 165, 245)),
    "pink": ((245, 140, 195), (150, 40, 100)),
}
"""RGB of a colour, and of its stripes and dots: light on dark colours, dark on light ones."""
PAINT_ARRAYS = np.array([PAINT[colour] for colour in COLOURS], dtype=np.float32)[..., None, None]

GROUND_PAINT: dict[GroundColour, tuple[int, int, int]] = {
    "white": (234, 234, 234),
    "gray": (128, 128, 128),
    "black": (30, 30, 30),
    "brown": (115, 85, 60),
}
CONTRAST: dict[Texture, float] = {"plain": 0.0, "checked": 11.0, "grainy": 24.0, "shaded": 20.0}
"""By how much a texture changes the ground's brightness, up and down, of 255."""

SHADE = 12  # each channel of an object's colour varies by at most this, of 255
GROUND_SHADE = 6  # the same for grounds
CHECKS = 8  # squares along a side
GRAINS = 24  # points of the grain along a side
FOLDS = 2  # soft light bands along a side; a single gradient is too faint at 32 pixels


def draw(scene: Scene, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The scene as an RGB picture of `side` x `side` pixels.

    Raises:
        ValueError: the side is not 32 to 512.
    """
    picture: np.ndarray = draw_all([scene], side)[0]
    return picture


def draw_all(scenes: Sequence[Scene], side: int) -> UInt8[np.ndarray, "B S S 3"]:
    """Many scenes at once, equal to those of `draw` and several times as fast."""
    if not 32 <= side <= 512:
        raise ValueError(f"scenes are drawn at 32 to 512 pixels per side, not {side}")
    pictures = np.empty((len(scenes), side, side, 3), dtype=np.uint8)
    together = max(1, 2**17 // side**2)  # what fits the cache
    for start in range(0, len(scenes), together):
        some = scenes[start : start + together]
        planes = draw_grounds([(scene.ground, scene.key) for scene in some], side)
        _add(planes, some)
        planes += 0.5
        np.clip(planes, 0, 255, out=planes)
        for channel in range(3):
            pictures[start : start + together, ..., channel] = planes[:, channel]
    return pictures


def _add(planes: Float32[np.ndarray, "B 3 S S"], scenes: Sequence[Scene]) -> None:
    """Paint the objects over their grounds, in order."""
    owned = [(i, scene.style, thing) for i, scene in enumerate(scenes) for thing in scene.things]
    marks: dict[int, tuple[Any, Any, Any, Any]] = {}
    for size in SIZES:  # one window for all objects of a size
        chosen = [n for n, (_, _, thing) in enumerate(owned) if thing.size == size]
        if chosen:
            windows = rasterise([owned[n][2] for n in chosen], planes.shape[-1])
            marks.update(zip(chosen, zip(*windows, strict=True), strict=True))
    for n, (i, style, thing) in enumerate(owned):
        (top, left), distance, covered, inked = marks[n]
        height, width = covered.shape
        part = planes[i, :, top : top + height, left : left + width]
        colour, contrast = paint(thing)
        if style == "line":  # outline and pattern in the object's colour, drawn on the ground
            line = coverage(np.abs(distance + STROKE) - STROKE, thing.radius * planes.shape[-1])
            part += np.maximum(line, covered * inked) * (colour - part)
            continue
        part += covered * (colour - part)
        if thing.pattern != "plain":
            part += (covered * inked) * contrast


def rasterise(
    things: Sequence[Thing], side: int
) -> tuple[
    Int[np.ndarray, "M 2"],
    Float32[np.ndarray, "M H W"],
    Float32[np.ndarray, "M H W"],
    Float32[np.ndarray, "M H W"],
]:
    """Rasterise several objects, each in a window of the same size.

    Returns the top left pixel of each window, the signed distance in radii, the share of each pixel
    that the object covers, and the share of that which its pattern covers.
    """
    x, y, radius = (np.array([getattr(t, n) for t in things]) for n in ("x", "y", "radius"))
    edge = min(side, int(2 * radius.max() * side) + 4)
    centre = np.stack([y, x], axis=1) * side
    corner = np.clip(np.rint(centre - edge / 2).astype(int), 0, side - edge)  # (M, 2)
    pixels = (radius * side)[:, None, None]
    place = (np.arange(edge) + 0.5 + corner[..., None] - centre[..., None]) / pixels  # (M, 2, edge)
    pixels = pixels.astype(np.float32)
    down, across = place[:, 0, :, None].astype(np.float32), place[:, 1, None, :].astype(np.float32)
    distance = np.empty((len(things), edge, edge), dtype=np.float32)
    inked = np.zeros_like(distance)
    shapes = np.array([SHAPES.index(t.shape) for t in things])
    patterns = np.array([PATTERNS.index(t.pattern) for t in things])
    for number, shape in enumerate(SHAPES):
        (chosen,) = np.nonzero(shapes == number)
        if len(chosen):
            distance[chosen] = signed_distance(shape, across[chosen], down[chosen])
    for number, pattern in enumerate(PATTERNS[1:], start=1):
        (chosen,) = np.nonzero(patterns == number)
        if len(chosen):
            inked[chosen] = ink(pattern, across[chosen], down[chosen], pixels[chosen])
    return corner, distance, coverage(distance, pixels), inked


def masks(scene: Scene, side: int) -> Bool[np.ndarray, "N S S"]:
    """The pixels that each object covers at least half, in the order of `scene.things`."""
    covered = np.zeros((len(scene.things), side, side), dtype=bool)
    for mask, thing in zip(covered, scene.things, strict=True):
        (corner,), (distance,), _, _ = rasterise([thing], side)
        top, left = corner
        height, width = distance.shape
        mask[top : top + height, left : left + width] = distance <= 0
    return covered


def boxes(scene: Scene) -> Float32[np.ndarray, "N 4"]:
    """The tight box of each object, xyxy relative to the side, in the order of `scene.things`."""
    rows = [
        (t.x + a * t.radius, t.y + b * t.radius, t.x + c * t.radius, t.y + d * t.radius)
        for t in scene.things
        for a, b, c, d in [EXTENT[t.shape]]
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def paint(thing: Thing) -> tuple[Float32[np.ndarray, "3 1 1"], Float32[np.ndarray, "3 1 1"]]:
    """The colour of an object, and what its pattern adds to it."""
    colour, inked = PAINT_ARRAYS[COLOURS.index(thing.colour)]
    return colour + np.array(thing.shade, dtype=np.float32)[:, None, None], inked - colour


def draw_grounds(
    grounds: Sequence[tuple[Ground, int]], side: int
) -> Float32[np.ndarray, "B 3 S S"]:
    """Grounds without objects, each with the key of its grain; RGB from 0 to 255."""
    planes = np.empty((len(grounds), 3, side, side), dtype=np.float32)
    for picture, (ground, _) in zip(planes, grounds, strict=True):
        colour = np.array(GROUND_PAINT[ground.colour], dtype=np.float32)
        colour = (colour + np.array(ground.shade, dtype=np.float32))[:, None, None]
        if ground.texture in ("checked", "shaded"):
            relief = relief_of(ground.texture, ground.turn, side)
            np.add(relief * np.float32(CONTRAST[ground.texture]), colour, out=picture)
        else:
            picture[:] = colour
    grainy = [i for i, (ground, _) in enumerate(grounds) if ground.texture == "grainy"]
    if grainy:
        blend = _between_grains(side)
        keys = np.array([grounds[i][1] for i in grainy], dtype=np.uint64)
        grains = (uniform(keys, GRAINS**2, 1 << 32) * 2 - 1).astype(np.float32)
        relief = blend @ grains.reshape(-1, GRAINS, GRAINS) @ blend.T
        planes[grainy] += relief[:, None] * np.float32(CONTRAST["grainy"])
    return planes


def relief_of(
    texture: Literal["checked", "shaded"], turn: int, side: int
) -> Float32[np.ndarray, "S S"]:
    """The brightness of a regular texture, -1 to 1."""
    if texture == "shaded":
        folds = shading(side) if turn < 2 else -shading(side)
        relief = np.broadcast_to(folds, (side, side))
        return relief if turn % 2 else relief.T
    edge = np.arange(side + 1) * (CHECKS / side)  # in squares
    lit = np.abs((edge / 2) % 1 * 2 - 1)  # the integral of a row of squares, up to a constant
    wave = ((lit[:-1] - lit[1:]) * (side / CHECKS)).astype(np.float32)
    return np.outer(wave, wave if turn % 2 else -wave)


def shading(side: int) -> Float32[np.ndarray, " S"]:
    """The brightness of a shaded ground along one axis, -1 to 1."""
    fold = np.abs((np.arange(side) + 0.5) * (FOLDS / side) % 1 * 4 - 2) - 1  # a triangle wave
    folds: np.ndarray = (fold * (3 - fold * fold) / 2).astype(np.float32)  # with rounded turns
    return folds


def _between_grains(side: int) -> Float32[np.ndarray, "S G"]:
    """Weights that interpolate a row of grain points at the pixel centres."""
    place = np.clip((np.arange(side) + 0.5) * (GRAINS / side) - 0.5, 0, GRAINS - 1)
    distance = np.abs(place[:, None] - np.arange(GRAINS))
    weights: np.ndarray = np.maximum(1 - distance, 0).astype(np.float32)
    return weights


def mix(z: np.ndarray) -> np.ndarray:
    """Hash 64-bit integers (the finaliser of SplitMix64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def uniform(keys: np.ndarray, count: int, first: int = 0) -> Float[np.ndarray, "B count"]:
    """Random numbers in [0, 1): a function of the key of row i and of the counter `first + j`."""
    counters = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    bits = mix(keys[:, None] + counters * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

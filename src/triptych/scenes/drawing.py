"""The built-in world as geometry: what a scene is, and how it becomes a picture, masks and boxes.

A scene lives in the unit square, x to the right and y down; every length is relative to the side,
so one scene can be drawn at any resolution. Each shape is a signed distance (negative inside) in
the object's own coordinates, where the object fits the unit disc. A pixel's coverage is the
distance clipped to one pixel's width, which antialiases without supersampling.

Dimensions: S side of the picture in pixels, N objects, H and W a window of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

Shape = Literal["circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Size = Literal["small", "large"]
Pattern = Literal["plain", "striped", "dotted"]
Texture = Literal["plain", "checked", "grainy", "shaded"]
GroundColour = Literal["white", "gray", "black", "brown"]
Style = Literal["painted", "line"]

SHAPES: tuple[Shape, ...] = (
    "circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent",
)  # fmt: skip
COLOURS: tuple[Colour, ...] = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink",
)  # fmt: skip
SIZES: tuple[Size, ...] = ("small", "large")
PATTERNS: tuple[Pattern, ...] = ("plain", "striped", "dotted")
TEXTURES: tuple[Texture, ...] = ("plain", "checked", "grainy", "shaded")
GROUND_COLOURS: tuple[GroundColour, ...] = ("white", "gray", "black", "brown")

HELD_OUT: tuple[tuple[Shape, Colour], ...] = tuple(
    (shape, COLOURS[(3 * i + 1) % 8]) for i, shape in enumerate(SHAPES)
)
"""Pairs of shape and colour for the split of that name: every shape once, every colour once."""
SEEN: tuple[tuple[Shape, Colour], ...] = tuple(
    (shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in HELD_OUT
)
"""The pairs of all other splits."""

RADII: dict[Size, tuple[float, float]] = {"small": (0.15, 0.17), "large": (0.215, 0.25)}
"""Range of the radius relative to the side; the gap between the two keeps a size from being
arguable.
"""

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
"""RGB of a colour, and of the ink of its stripes and dots: light on dark colours, dark on light
ones.
"""
PAINT_ARRAYS = np.array([PAINT[colour] for colour in COLOURS], dtype=np.float32)[..., None, None]

GROUND_PAINT: dict[GroundColour, tuple[int, int, int]] = {
    "white": (234, 234, 234),
    "gray": (128, 128, 128),
    "black": (30, 30, 30),
    "brown": (115, 85, 60),
}
CONTRAST: dict[Texture, float] = {"plain": 0.0, "checked": 11.0, "grainy": 24.0, "shaded": 20.0}
"""How far a texture takes the ground's brightness up and down, of 255."""

SHADE = 12  # each channel of an object's colour varies by at most this, of 255
GROUND_SHADE = 6  # the same for grounds
CHECKS = 8  # squares along a side
GRAINS = 24  # points of the grain along a side
FOLDS = 2  # soft light bands along a side; a single slope is too faint to be learnt at 32 pixels

CIRCLE = 0.94
SQUARE = math.sqrt(0.5)
CROSS, ARM = 0.94, 0.33  # half of the length and of the width of a bar
RING = 0.58  # inner radius
STAR = 0.45  # distance of the inner corners
BITE, BITE_X = 0.8, 0.5  # radius and centre of the disc that is cut from a crescent
HEART, HEART_Y = 0.75, 0.1  # half diagonal and centre of the heart's diamond
STROKE = 0.09  # half of a line's width in a line drawing, of the radius
STRIPES, STRIPE = 0.62, 0.30  # period and width of the stripes, of the radius
DOTS, DOT = 0.6, 0.19  # spacing and radius of the dots, of the radius

TIP_X = (1 - BITE**2 + BITE_X**2) / (2 * BITE_X)  # where a crescent's two circles meet
LOBE = HEART * (0.5 + math.sqrt(0.5))
COS18, SIN54 = math.cos(math.radians(18)), math.sin(math.radians(54))
EXTENT: dict[Shape, tuple[float, float, float, float]] = {
    "circle": (-CIRCLE, -CIRCLE, CIRCLE, CIRCLE),
    "square": (-SQUARE, -SQUARE, SQUARE, SQUARE),
    "triangle": (-math.sqrt(0.75), -1.0, math.sqrt(0.75), 0.5),
    "star": (-COS18, -1.0, COS18, SIN54),
    "cross": (-CROSS, -CROSS, CROSS, CROSS),
    "ring": (-1.0, -1.0, 1.0, 1.0),
    "heart": (-LOBE, HEART_Y - LOBE, LOBE, HEART_Y + HEART),
    "crescent": (-1.0, -1.0, TIP_X, 1.0),
}
"""The tight box of each shape around its centre, xyxy in radii."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. `x`, `y` and `radius` are relative to the side; `shade` is added to its RGB."""

    shape: Shape
    colour: Colour
    size: Size
    pattern: Pattern
    x: float
    y: float
    radius: float
    shade: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Ground:
    """What lies behind the objects. `turn` is one of four directions of a texture."""

    colour: GroundColour
    texture: Texture = "plain"
    turn: int = 0
    shade: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything there is to know of one picture; `key` decides its grain and how its captions are
    worded.
    """

    things: tuple[Thing, ...]
    ground: Ground
    style: Style = "painted"
    key: int = 0


def draw(scene: Scene, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The scene as a picture, RGB.

    Args:
        side: of the picture in pixels, 32 to 512.

    Raises:
        ValueError: the side is out of that range.
    """
    picture: np.ndarray = draw_all([scene], side)[0]
    return picture


def draw_all(scenes: Sequence[Scene], side: int) -> UInt8[np.ndarray, "B S S 3"]:
    """Many scenes at once, each exactly as `draw` draws it, and several times as quick."""
    if not 32 <= side <= 512:
        raise ValueError(f"a scene is drawn at 32 to 512 pixels a side, not {side}")
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
    """Paint the objects over their grounds, in their order."""
    owned = [(i, scene.style, thing) for i, scene in enumerate(scenes) for thing in scene.things]
    marks: dict[int, tuple[Any, Any, Any, Any]] = {}
    for size in SIZES:  # one window for all objects of a size
        chosen = [n for n, (_, _, thing) in enumerate(owned) if thing.size == size]
        if chosen:
            drawn = rasterise([owned[n][2] for n in chosen], planes.shape[-1])
            marks.update(zip(chosen, zip(*drawn, strict=True), strict=True))
    for n, (i, style, thing) in enumerate(owned):
        (top, left), distance, covered, inked = marks[n]
        height, width = covered.shape
        part = planes[i, :, top : top + height, left : left + width]
        colour, contrast = paint(thing)
        if style == "line":  # outline and ink in the colour, the ground between; inside the shape
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
    """Several objects, each in a window of the same size.

    Returns the window's top and left pixel, the signed distance in radii, how much of each pixel
    the object covers, and how much of that its pattern inks.
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
    """Which pixels are at least half covered by each object, in the order of `scene.things`."""
    found = np.zeros((len(scene.things), side, side), dtype=bool)
    for mask, thing in zip(found, scene.things, strict=True):
        (corner,), (distance,), _, _ = rasterise([thing], side)
        top, left = corner
        height, width = distance.shape
        mask[top : top + height, left : left + width] = distance <= 0
    return found


def boxes(scene: Scene) -> Float32[np.ndarray, "N 4"]:
    """The tight box of each object, xyxy relative to the side, in the order of `scene.things`."""
    rows = [
        (t.x + a * t.radius, t.y + b * t.radius, t.x + c * t.radius, t.y + d * t.radius)
        for t in scene.things
        for a, b, c, d in [EXTENT[t.shape]]
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def paint(thing: Thing) -> tuple[Float32[np.ndarray, "3 1 1"], Float32[np.ndarray, "3 1 1"]]:
    """The colour of an object, and what ink adds to it."""
    colour, inked = PAINT_ARRAYS[COLOURS.index(thing.colour)]
    return colour + np.array(thing.shade, dtype=np.float32)[:, None, None], inked - colour


def coverage(
    distance: Float[np.ndarray, "*M H W"], pixels: Float[np.ndarray, "*M #1 #1"] | float
) -> Float[np.ndarray, "*M H W"]:
    """How much of each pixel lies inside: `distance` in radii, `pixels` the radius in pixels."""
    covered = distance * -pixels
    covered += 0.5
    np.maximum(covered, 0, out=covered)  # numpy's clip takes as long again to see what it was given
    return np.minimum(covered, 1, out=covered)


def norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The length of (x, y); numpy's hypot guards against overflow and takes four times as long."""
    length: np.ndarray = x * x + y * y
    np.sqrt(length, out=length)
    return length


def signed_distance(
    shape: Shape, x: Float[np.ndarray, "*M 1 W"], y: Float[np.ndarray, "*M H 1"]
) -> Float[np.ndarray, "*M H W"]:
    """The distance to a shape's outline in radii, negative inside.

    Exact along the outline; off a corner it is a lower bound, which blunts the corner by less than
    a pixel.
    """
    distance: np.ndarray
    match shape:
        case "circle":
            distance = norm(x, y) - CIRCLE
        case "square":
            distance = np.maximum(np.abs(x), np.abs(y)) - SQUARE
        case "triangle":
            distance = np.maximum(y, np.abs(x) * math.sqrt(0.75) - y / 2) - 0.5
        case "cross":
            across, down = np.abs(x), np.abs(y)
            level = np.maximum(across - CROSS, down - ARM)
            distance = np.minimum(level, np.maximum(across - ARM, down - CROSS))
        case "ring":
            distance = np.abs(norm(x, y) - (1 + RING) / 2) - (1 - RING) / 2
        case "crescent":
            distance = np.maximum(norm(x, y) - 1, BITE - norm(x - BITE_X, y))
        case "heart":
            across, down = np.abs(x), y - HEART_Y
            lobe = norm(across - HEART / 2, down + HEART / 2) - HEART * math.sqrt(0.5)
            distance = np.minimum(lobe, (across + np.abs(down) - HEART) * math.sqrt(0.5))
        case "star":
            distance = _star_distance(x, y)
    return distance


def _star_distance(
    x: Float[np.ndarray, "*M 1 W"], y: Float[np.ndarray, "*M H 1"]
) -> Float[np.ndarray, "*M H W"]:
    """The ten edges are one another's mirror images: fold every point to the edge beside the top
    tip.
    """
    x, y = np.abs(x), -y
    x, y = _fold(x, y, 72)
    x, y = _fold(
        np.abs(x), y, 36
    )  # now between a tip, straight up, and an inner corner, at 36 degrees
    corner_x, corner_y = STAR * math.sin(math.radians(36)), STAR * math.cos(math.radians(36))
    length = math.hypot(corner_x, 1 - corner_y)
    normal_x, normal_y = (1 - corner_y) / length, corner_x / length
    return x * normal_x + y * normal_y - normal_y


def _fold(x: np.ndarray, y: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Mirror what lies clockwise of a line through the centre, given by its angle from straight
    up.
    """
    normal_x, normal_y = math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))
    beyond = 2 * np.maximum(x * normal_x + y * normal_y, 0)
    return x - beyond * normal_x, y - beyond * normal_y


def ink(
    pattern: Pattern,
    x: Float[np.ndarray, "*M 1 W"],
    y: Float[np.ndarray, "*M H 1"],
    pixels: Float[np.ndarray, "*M #1 #1"] | float,
) -> Float[np.ndarray, "*M H W"]:
    """How much of each pixel a pattern inks, were it inside the object."""
    if pattern == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    if pattern == "striped":
        across = x * (math.sqrt(0.5) / STRIPES) + y * (math.sqrt(0.5) / STRIPES)
        return coverage(np.abs(across - np.rint(across)) * STRIPES - STRIPE / 2, pixels)
    x, y = x / DOTS, y / DOTS  # each axis by itself is cheap
    return coverage(norm(x - np.rint(x), y - np.rint(y)) * DOTS - DOT, pixels)


def draw_grounds(
    grounds: Sequence[tuple[Ground, int]], side: int
) -> Float32[np.ndarray, "B 3 S S"]:
    """Grounds alone, each with the key of its grain; RGB 0 to 255, a plane per channel."""
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
        whole = np.broadcast_to(folds, (side, side))
        return whole if turn % 2 else whole.T
    edge = np.arange(side + 1) * (CHECKS / side)  # in squares
    lit = np.abs(
        (edge / 2) % 1 * 2 - 1
    )  # what of a row of squares is lit up to here, up to a constant
    wave = ((lit[:-1] - lit[1:]) * (side / CHECKS)).astype(np.float32)
    return np.outer(wave, wave if turn % 2 else -wave)


def shading(side: int) -> Float32[np.ndarray, " S"]:
    """How bright a shaded ground is along one axis, -1 to 1."""
    fold = np.abs((np.arange(side) + 0.5) * (FOLDS / side) % 1 * 4 - 2) - 1  # straight up and down
    folds: np.ndarray = (fold * (3 - fold * fold) / 2).astype(np.float32)  # rounded where it turns
    return folds


def _between_grains(side: int) -> Float32[np.ndarray, "S G"]:
    """Weights that interpolate a row of grains at the pixel centres."""
    place = np.clip((np.arange(side) + 0.5) * (GRAINS / side) - 0.5, 0, GRAINS - 1)
    distance = np.abs(place[:, None] - np.arange(GRAINS))
    weights: np.ndarray = np.maximum(1 - distance, 0).astype(np.float32)
    return weights


def mix(z: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers so that neighbours share nothing (the finaliser of SplitMix64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def uniform(keys: np.ndarray, count: int, first: int = 0) -> Float[np.ndarray, "B count"]:
    """Numbers in [0, 1): row i is a function of keys[i] alone, column j of the counter `first +
    j`.
    """
    counters = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    bits = mix(keys[:, None] + counters * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

"""The shapes and patterns of the built-in world as signed distances.

Coordinates are those of the object, which fits the unit disc: x to the right, y down, in radii. A
pixel's coverage is the distance clipped to one pixel's width, which antialiases without
supersampling.

Dimensions: H and W a window of the picture.
"""

import math

import numpy as np
from jaxtyping import Float

from triptych.scenes.scene import Pattern, Shape

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


def coverage(
    distance: Float[np.ndarray, "*M H W"], pixels: Float[np.ndarray, "*M #1 #1"] | float
) -> Float[np.ndarray, "*M H W"]:
    """The share of each pixel inside the shape; `distance` in radii, `pixels` pixels per radius."""
    covered = distance * -pixels
    covered += 0.5
    np.maximum(covered, 0, out=covered)  # faster than numpy's clip
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
    """All ten edges are mirror images of one: mirror every point to the edge beside the top tip."""
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
    """Mirror the points clockwise of a line through the centre, at this angle from straight up."""
    normal_x, normal_y = math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))
    shift = 2 * np.maximum(x * normal_x + y * normal_y, 0)
    return x - shift * normal_x, y - shift * normal_y


def ink(
    pattern: Pattern,
    x: Float[np.ndarray, "*M 1 W"],
    y: Float[np.ndarray, "*M H 1"],
    pixels: Float[np.ndarray, "*M #1 #1"] | float,
) -> Float[np.ndarray, "*M H W"]:
    """The share of each pixel that a pattern covers, ignoring the object's outline."""
    if pattern == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    if pattern == "striped":
        across = x * (math.sqrt(0.5) / STRIPES) + y * (math.sqrt(0.5) / STRIPES)
        return coverage(np.abs(across - np.rint(across)) * STRIPES - STRIPE / 2, pixels)
    x, y = x / DOTS, y / DOTS
    return coverage(norm(x - np.rint(x), y - np.rint(y)) * DOTS - DOT, pixels)

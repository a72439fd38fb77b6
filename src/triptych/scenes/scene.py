"""What a scene of the built-in world is: objects on a ground, and all their possible attributes.

A scene is in the unit square, x to the right and y down. All lengths are relative to the side, so a
scene can be drawn at any resolution.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Size = Literal["small", "large"]
Pattern = Literal["plain", "striped", "dotted"]
Texture = Literal["plain", "checked", "grainy", "shaded"]
GroundColour = Literal["white", "gray", "black", "brown"]
Style = Literal["painted", "line"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
TEXTURES: tuple[Texture, ...] = get_args(Texture)
GROUND_COLOURS: tuple[GroundColour, ...] = get_args(GroundColour)

HELD_OUT: tuple[tuple[Shape, Colour], ...] = tuple(
    (shape, COLOURS[(3 * i + 1) % 8]) for i, shape in enumerate(SHAPES)
)
"""The pairs of shape and colour of the split `held-out`: every shape once, every colour once."""
SEEN: tuple[tuple[Shape, Colour], ...] = tuple(
    (shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in HELD_OUT
)
"""The pairs of all other splits."""

RADII: dict[Size, tuple[float, float]] = {"small": (0.15, 0.17), "large": (0.215, 0.25)}
"""Range of the radius relative to the side; the gap between the two makes sizes unambiguous."""


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
    """The background. `turn` is one of four directions of a texture."""

    colour: GroundColour
    texture: Texture = "plain"
    turn: int = 0
    shade: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one picture; `key` seeds its grain and the wording of its captions."""

    things: tuple[Thing, ...]
    ground: Ground
    style: Style = "painted"
    key: int = 0

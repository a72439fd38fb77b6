"""The built-in world of scenes as a source of training data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from triptych.data.source import Columns, SourceInfo
from triptych.scenes.descriptions import caption
from triptych.scenes.drawing import boxes, draw_all
from triptych.scenes.scene import COLOURS, GROUND_COLOURS, PATTERNS, SHAPES, SIZES, TEXTURES, Scene
from triptych.scenes.world import SPLITS, Difficulty, require_one_of, scenes

NAMES: dict[str, Difficulty] = {"scenes": "four", "scenes-one": "one", "scenes-two": "two"}
ATTRIBUTES = (
    *SHAPES, *COLOURS, *SIZES, *PATTERNS,
    *(f"{colour} ground" for colour in GROUND_COLOURS), *(f"{texture} ground" for texture in
    TEXTURES),
)  # fmt: skip
COLUMN = {name: i for i, name in enumerate(ATTRIBUTES)}


@dataclass(frozen=True)
class SceneSource:
    """A `Source` of pictures of the built-in world.

    `scenes` has one to four objects, `scenes-two` two, `scenes-one` one. Only pictures of one
    object have a class (the shape) and a vector (position and radius).

    Raises:
        ValueError: an unknown name or split, a size outside 32 to 512, or other than 3 channels.
    """

    name: str = "scenes"
    split: str = "train"
    size: int | None = None  # None is 64
    channels: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("scenes", self.name, tuple(NAMES))
        require_one_of("split", self.split, SPLITS)
        if self.size is not None and not 32 <= self.size <= 512:
            raise ValueError(f"scenes are drawn at 32 to 512 pixels per side, not {self.size}")
        if self.channels not in (None, 3):
            raise ValueError(f"scenes are in colour: --channels must be 3, not {self.channels}")

    @cached_property
    def info(self) -> SourceInfo:
        side, one = self.size or 64, self.name == "scenes-one"
        return SourceInfo(
            self.name,
            self.split,
            length=None,
            shape=(side, side, 3),
            classes=SHAPES if one else (),
            attributes=ATTRIBUTES,
            vector=("x", "y", "radius") if one else (),
            has_captions=True,
        )

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        """The scenes at these indices, not drawn."""
        return scenes(self.seed, indices, self.split, NAMES[self.name])  # type: ignore[arg-type]

    def read(self, indices: Sequence[int]) -> Columns:
        """The pictures at these indices, in this order, with captions, attributes and boxes."""
        scenes = self.scenes(indices)
        attributes = np.zeros((len(scenes), len(ATTRIBUTES)), dtype=np.float32)
        for row, scene in zip(attributes, scenes, strict=True):
            ground = f"{scene.ground.colour} ground", f"{scene.ground.texture} ground"
            named = (v for t in scene.things for v in (t.shape, t.colour, t.size, t.pattern))
            row[[COLUMN[name] for name in (*named, *ground)]] = 1
        columns: dict[str, Any] = {
            "image": draw_all(scenes, self.info.shape[0]),
            "attributes": attributes,
            "caption": [caption(scene) for scene in scenes],
            "boxes": [boxes(scene) for scene in scenes],
            "box_labels": [[f"{t.colour} {t.shape}" for t in scene.things] for scene in scenes],
        }
        if self.name == "scenes-one":
            firsts = [scene.things[0] for scene in scenes]
            columns["label"] = np.array([SHAPES.index(t.shape) for t in firsts], dtype=np.int64)
            columns["vector"] = np.array([(t.x, t.y, t.radius) for t in firsts], dtype=np.float32)
        return columns

"""Pictures of classes with their records, and previews.

Dimensions: H height, W width, C channels.
"""

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from triptych.fields import to_json
from triptych.system import Answer, AnswerPicture
from triptych.systems.class_to_image.pipeline import Pictures
from triptych.systems.class_to_image.request import ClassToImage
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded


def to_answer(item: Pictures, model: str) -> Answer:
    """The request with its seed, and each picture with the request that draws it alone."""
    request = to_record(item.request, model)
    assert item.request.seed is not None
    pictures = []
    for number, pixels in enumerate(item.pictures):
        seed, name = item.request.seed + number, item.names[number]
        record = {"request": record_of(request, seed, name, item.by_class), "shows": name}
        pictures.append(AnswerPicture(pixels, record, {"seed": seed, "shows": name}))
    return Answer({"request": request}, pictures)


def make_preview(loaded: Loaded) -> Callable[[Pictures], UInt8[np.ndarray, "H W C"] | None]:
    """What a diffusion model expects of the first picture of a batch; others have no steps."""

    def preview(item: Pictures) -> UInt8[np.ndarray, "H W C"] | None:
        return None if item.guess is None else to_pictures(item.guess[:1])[0]

    return preview


def to_record(request: ClassToImage, model: str) -> dict[str, Any]:
    """The request as it is stored in a picture: names instead of paths."""
    names = {field: PurePath(getattr(request, field)).name for field in ("image", "clip")}
    return to_json(request) | names | {"model": model}


def record_of(request: dict[str, Any], seed: int, name: str, by_class: bool) -> dict[str, Any]:
    """The record of one picture: drawn in turn with other classes, it names its own."""
    label = {"label": name} if by_class else {}
    return request | {"seed": seed, "n": 1} | label

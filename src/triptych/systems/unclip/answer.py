"""Pictures with their records, and one labelled strip of them, as plain values.

Dimensions: H height, W width, C channels.
"""

from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from triptych.fields import to_json
from triptych.system import Answer, AnswerPicture
from triptych.systems.unclip.pipeline import UnclipDrawing, require_unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.text.prompt_tokens import PromptTokens, spell
from triptych.vision.grids import labelled_grid
from triptych.weights.loaded import Loaded


def to_answer(item: UnclipDrawing, model: str) -> Answer:
    """The request with its seed, and each picture with the request that draws it."""
    pictures = []
    for number, (pixels, label) in enumerate(zip(item.pictures, item.labels, strict=True)):
        one = item.request_of(number)
        record = {"request": to_record(one, model), "shows": label}
        pictures.append(AnswerPicture(pixels, record, {"seed": one.seed, "shows": label}))
    return Answer({"request": to_record(item.request, model)}, pictures)


def read_prompt(loaded: Loaded, prompt: str) -> PromptTokens:
    """The tokens of a prompt, and the words that the text tower does not read."""
    _, tokenizer = require_unclip(loaded)
    encoded = tokenizer.encode([prompt])
    row = spell(tokenizer, encoded.tokens[0].tolist())
    return PromptTokens([row], tokenizer.room, encoded.cut[0])


def to_record(request: UnclipPictures, model: str) -> dict[str, Any]:
    """The request as it is stored in a picture: names instead of paths."""
    names = {field: PurePath(getattr(request, field)).name for field in ("image", "second")}
    return to_json(request) | names | {"model": model}


def draw_strip(item: UnclipDrawing) -> UInt8[np.ndarray, "H W 3"]:
    """All pictures beside one another with their labels, those that were given first."""
    shown = np.concatenate([item.given, item.pictures])
    return labelled_grid(shown[None], (), (*item.given_labels, *item.labels), item.title)

"""Answers about pictures as plain values, and the objects drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from triptych.fields import to_json
from triptych.system import Answer, AnswerPicture
from triptych.systems.gemma import answer as language
from triptych.systems.gemma.pipeline import Said
from triptych.systems.paligemma.pipeline import Seen
from triptych.systems.paligemma.request import Ask
from triptych.vision.boxes import draw_boxes, draw_masks
from triptych.vision.given_pictures import picture_name


def to_answer(item: Said, model: str) -> Answer:
    """The text and its tokens; of objects also boxes, and the picture with them."""
    values = to_values(item, model)
    if item.objects is None:
        return Answer(values)
    drawn = AnswerPicture(
        draw_seen(item.objects), {"request": to_record(item.request, model)}, {}, kind="shown"
    )
    return Answer(values, [drawn])


def to_values(item: Said, model: str) -> dict[str, Any]:
    """The text and its tokens; of objects also the boxes, in shares of the sides, and of masks
    their codes and how many pixels they have.
    """
    values = dict(language.to_answer(item, model).values)
    seen: Seen | None = item.objects
    if seen is None:
        return values
    located, scores = seen.objects.located, seen.objects.scores
    values["boxes"] = [
        {"label": each.label, "box": list(each.box), "score": score}
        for each, score in zip(located, scores, strict=True)
    ]
    values["ignored"] = list(seen.objects.ignored)
    if seen.masks is not None:
        for row, each, mask in zip(values["boxes"], located, seen.masks, strict=True):
            row |= {"codes": list(each.codes), "pixels": int(mask.sum())}
    return values


def to_record(request: Ask, model: str) -> dict[str, Any]:
    """The request without paths of this machine."""
    named = {"model": model, "picture": picture_name(request.picture)}
    return to_json(request) | named | {"codes": Path(request.codes).name}


def draw_seen(seen: Seen) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with its objects: masks in colour, boxes with their labels."""
    labels = [each.label for each in seen.objects.located]
    picture = seen.picture
    if seen.masks is not None:
        picture = draw_masks(picture, seen.masks, labels)
    boxes = torch.tensor([each.box for each in seen.objects.located]).reshape(-1, 4)
    return draw_boxes(picture, boxes, labels, seen.objects.scores)

"""Boxes as plain values, and heat maps as pictures."""

from typing import Any

from triptych.fields import to_json
from triptych.system import Answer, AnswerPicture
from triptych.systems.detection.annotations import Annotated, to_plain_json
from triptych.systems.detection.pipeline import Detections
from triptych.vision.boxes import draw_boxes, draw_heat
from triptych.vision.given_pictures import picture_name
from triptych.vision.pixels import read_picture


def to_answer(item: Detections, model: str) -> Answer:
    """The boxes, the picture with its boxes, and a heat map for every label; nothing before the
    work is done.
    """
    request = to_json(item.request) | {"model": model}
    request |= {"picture": picture_name(item.request.picture)}
    if item.done < 1:
        return Answer({"request": request})
    height, width = item.size
    scores = tuple(item.boxes.scores.tolist())
    found = Annotated(request["picture"], height, width, item.boxes.corners, item.names, scores)
    pixels = read_picture("picture", item.request.picture, channels=3)
    record: dict[str, Any] = {"request": request}
    drawn = draw_boxes(pixels, found.boxes, found.labels, found.scores)
    pictures = [AnswerPicture(drawn, record, {"shows": "boxes"}, kind="shown")]
    for label, heat in zip(item.request.labels, item.heat, strict=True):
        facts = {"shows": "heat map", "label": label}
        drawn = draw_heat(pixels, heat.clamp(0, 1))
        pictures.append(AnswerPicture(drawn, record, facts, kind="shown"))
    return Answer({"request": request, **to_plain_json(found)}, pictures)

"""Pictures of points with their records."""

from triptych.fields import to_json
from triptych.system import Answer, AnswerPicture
from triptych.systems.latent_plane.pipeline import PlaneDrawing


def to_answer(item: PlaneDrawing, model: str) -> Answer:
    """The request with its points, and each picture with the request that draws it alone."""
    request = to_json(item.request) | {"model": model}
    pictures = []
    for pixels, point in zip(item.pictures, request["points"], strict=True):
        facts = {"point": point, "shows": item.request.label}
        record = {"request": request | {"points": [point]}}
        pictures.append(AnswerPicture(pixels, record, facts, kind="shown"))
    return Answer({"request": request, "share": item.share}, pictures)

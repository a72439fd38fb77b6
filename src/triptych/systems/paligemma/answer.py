"""Answers about pictures as plain values."""

from triptych.system import Answer
from triptych.systems.gemma import answer as language
from triptych.systems.gemma.pipeline import Said
from triptych.systems.paligemma.pipeline import find_objects


def to_answer(item: Said, model: str) -> Answer:
    """The text and its tokens; of a request to detect also the boxes, in shares of the sides."""
    values = dict(language.to_answer(item, model).values)
    if item.request.task == "detect":
        parsed = find_objects(item)
        values["boxes"] = [{"label": each.label, "box": list(each.box)} for each in parsed.objects]
        values["ignored"] = list(parsed.ignored)
    return Answer(values)

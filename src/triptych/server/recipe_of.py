"""The request that a picture file says it was made with: ours, or AUTOMATIC1111's text."""

from typing import Any

from triptych import fields
from triptych.fields import to_json
from triptych.server.catalog import offered_requests
from triptych.systems.stable_diffusion.inputs.parameters_text import parse_infotext
from triptych.systems.stable_diffusion.inputs.replay import replay
from triptych.vision.images import read_parameters, read_request


def request_of_picture(data: bytes) -> dict[str, Any] | None:
    """`name` of the request, its `request` and `notes`; None where the file has none."""
    record = (read_request(data) or {}).get("request")
    if isinstance(record, dict):
        return request_of_record(record)
    try:
        text = read_parameters(data)
    except ValueError:
        return None
    return None if text is None else request_of_text(text)


def request_of_record(record: dict[str, Any]) -> dict[str, Any] | None:
    """Our own record: that of the first request with exactly these fields."""
    for offered in offered_requests().values():
        if offered.lane != "draw":
            continue
        try:
            request: Any = fields.from_json(offered.kind, record)
        except ValueError:
            continue
        return {"name": offered.name, "request": to_json(request), "notes": []}
    return None


def request_of_text(text: str) -> dict[str, Any] | None:
    """The text of AUTOMATIC1111."""
    try:
        replayed = replay(parse_infotext(text))
    except ValueError:
        return None
    request = to_json(replayed.request)
    return {"name": "text-to-image", "request": request, "notes": list(replayed.notes)}

"""What a search found as plain values, and small pictures of it."""

from pathlib import Path
from typing import Any

from triptych.system import Answer, AnswerPicture
from triptych.systems.search.pipeline import SearchResults, format_query
from triptych.vision.images import open_picture

MOST_SHOWN, SIDE = 60, 256
"""How many pictures are shown, and about how large, in pixels."""


def to_answer(item: SearchResults, model: str) -> Answer:
    """The pictures that were found, once the index is up to date; the first are shown."""
    if item.index is None:
        return Answer({"model": model})
    pictures = []
    for match in item.matches[:MOST_SHOWN]:
        try:
            pixels = open_picture(Path(item.index.paths[match.name]), channels=3, near=SIDE)
        except (ValueError, OSError):  # removed or changed since it was indexed
            continue
        scale = max(1, max(pixels.shape[:2]) // SIDE)
        facts = {"name": match.name, "score": match.score}
        pictures.append(AnswerPicture(pixels[::scale, ::scale], {}, facts, kind="shown"))
    return Answer(describe(item) | {"model": model}, pictures)


def describe(found: SearchResults) -> dict[str, Any]:
    """The pictures that were found, or groups of near duplicates, with their cosines."""
    index = found.index
    assert index is not None
    facts: dict[str, Any] = {
        "folder": found.request.folder,
        "query": format_query(found.request),
        "pictures": len(index.names),
        "new": found.new,
        "skipped": index.skipped,
        "notes": list(found.notes),
    }
    if found.request.duplicates is None:
        return facts | {"matches": [match._asdict() for match in found.matches]}
    groups = [[match._asdict() for match in group] for group in found.groups]
    return facts | {"threshold": found.request.duplicates, "groups": groups}

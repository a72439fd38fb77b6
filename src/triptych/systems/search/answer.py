"""What a search found as plain values."""

from typing import Any

from triptych.system import Answer
from triptych.systems.search.pipeline import SearchResults, format_query


def to_answer(item: SearchResults, model: str) -> Answer:
    """The pictures that were found, once the index is up to date."""
    found = {} if item.index is None else describe(item)
    return Answer(found | {"model": model})


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

"""What a source says in words: its captions, or sentences made of its class names."""

from collections.abc import Sequence

import numpy as np

from triptych.data.source import Source
from triptych.data.table import Table


def captions_of(source: Source, most: int) -> list[tuple[str, ...]]:
    """The captions of up to `most` pictures, evenly spread over the source, several a picture where
    it has several; of a folder no picture is opened.

    Raises:
        ValueError: the source has no captions.
    """
    if not source.captioned:
        raise ValueError(f"{source.name!r} has no captions")
    length = source.length or most
    chosen = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(np.int64))
    if isinstance(source, Table):
        said = source.index.said.captions
        assert said is not None
        return [tuple(said[int(row)]) for row in source.rows[chosen]]
    found: list[tuple[str, ...]] = []
    for start in range(0, len(chosen), 256):
        read = source.read(chosen[start : start + 256].tolist())["caption"]
        found += [(text,) if isinstance(text, str) else tuple(text) for text in read]
    return found


def sentences(
    classes: Sequence[str], labels: Sequence[int], templates: Sequence[str], draws: Sequence[int]
) -> list[str]:
    """One sentence a label: its class name in the template that the draw chooses."""
    return [
        templates[draw % len(templates)].replace("{}", spoken(classes[label]))
        for label, draw in zip(labels, draws, strict=True)
    ]


def spoken(name: str) -> str:
    """A class name as one would say it: folders are called `golden_retriever`."""
    return name.replace("_", " ").strip()

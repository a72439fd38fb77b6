"""What a source says in words: its captions, or sentences made of its class names."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from triptych.data.disk.table import Table
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.scenes.descriptions import caption


def captions_of(source: Source, most: int) -> list[tuple[str, ...]]:
    """The captions of up to `most` pictures, evenly spread over the source, several a picture where
    it has several; of a folder no picture is opened.

    Raises:
        ValueError: the source has no captions.
    """
    if not source.info.has_captions:
        raise ValueError(f"{source.info.name!r} has no captions")
    length = source.info.length or most
    chosen = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(np.int64))
    if isinstance(source, Table):
        annotations = source.index.annotations.captions
        assert annotations is not None
        return [tuple(annotations[int(row)]) for row in source.rows[chosen]]
    found: list[tuple[str, ...]] = []
    for start in range(0, len(chosen), 256):
        read = source.read(chosen[start : start + 256].tolist())["caption"]
        found += [(text,) if isinstance(text, str) else tuple(text) for text in read]
    return found


def reader(source: Source, templates: Sequence[str]) -> Callable[[dict[str, Any]], list[str]]:
    """The texts of a batch: its captions, or its class names in sentences drawn at random.

    Raises:
        ValueError: the source says nothing.
    """
    if source.info.has_captions:
        return lambda batch: list(batch["caption"])
    if not source.info.classes:
        raise ValueError(
            f"{source.info.name!r} has neither captions nor classes: put a .txt of the same name "
            "beside each picture, or sort the pictures into a folder for each class"
        )

    def read(batch: dict[str, Any]) -> list[str]:
        draws = torch.randint(len(templates), (len(batch["label"]),)).tolist()
        return sentences(source.info.classes, batch["label"].tolist(), templates, draws)

    return read


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


def texts_at(source: Source, indices: Sequence[int], draws: Sequence[int]) -> list[str]:
    """What is said of the pictures at these indices, without opening any: a caption, of several the
    one that the draw chooses, or the class name.

    Raises:
        ValueError: the source says nothing.
    """
    if isinstance(source, SceneSource):
        return [caption(scene) for scene in source.scenes(indices)]
    if isinstance(source, Table):
        annotations, rows = source.index.annotations, source.rows[np.asarray(indices, np.int64)]
        if annotations.captions is not None:
            several = [annotations.captions[int(row)] for row in rows]
            return [some[draw % len(some)] for some, draw in zip(several, draws, strict=True)]
        if annotations.labels is not None:
            return [annotations.classes[int(annotations.labels[row])] for row in rows]
    raise ValueError(f"{source.info.name!r} has neither captions nor classes to be alike in")

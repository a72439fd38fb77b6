"""The texts of a source: its captions, or prompts made of its class names."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from triptych.data.disk.table import Table
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.scenes.descriptions import caption


def captions_of(source: Source, most: int) -> list[tuple[str, ...]]:
    """All captions of up to `most` pictures, evenly spread over the source. Pictures of
    folders are not opened, and scenes are not drawn.

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
    if isinstance(source, SceneSource):
        return [(caption(scene),) for scene in source.scenes(chosen.tolist())]
    captions: list[tuple[str, ...]] = []
    for start in range(0, len(chosen), 256):
        read = source.read(chosen[start : start + 256].tolist())["caption"]
        captions += [(text,) if isinstance(text, str) else tuple(text) for text in read]
    return captions


def batch_texts(source: Source, templates: Sequence[str]) -> Callable[[dict[str, Any]], list[str]]:
    """A function from a batch to its texts: the captions, or its class names in random templates.

    Raises:
        ValueError: the source has neither captions nor classes.
    """
    if source.info.asked:
        raise ValueError(
            f"{source.info.name!r} has questions with answers, no captions: it is for `triptych "
            "train vlm` and `train pali`"
        )
    if source.info.has_captions:
        return lambda batch: list(batch["caption"])
    if not source.info.classes:
        raise ValueError(
            f"{source.info.name!r} has neither captions nor classes: put a .txt of the same name "
            "beside each picture, or sort the pictures into a folder for each class"
        )

    def prompts(batch: dict[str, Any]) -> list[str]:
        draws = torch.randint(len(templates), (len(batch["label"]),)).tolist()
        return fill_templates(source.info.classes, batch["label"].tolist(), templates, draws)

    return prompts


def fill_templates(
    classes: Sequence[str], labels: Sequence[int], templates: Sequence[str], draws: Sequence[int]
) -> list[str]:
    """One prompt per label: its class name in the template that the random number chooses."""
    return [
        templates[draw % len(templates)].replace("{}", class_words(classes[label]))
        for label, draw in zip(labels, draws, strict=True)
    ]


def class_words(name: str) -> str:
    """A class name as words: folders are often called `golden_retriever`."""
    return name.replace("_", " ").strip()


def texts_at(source: Source, indices: Sequence[int], draws: Sequence[int]) -> list[str]:
    """A text for each of these pictures, without opening any: a caption (among several, the random
    number in `draws` chooses), or the class name.

    Raises:
        ValueError: the source has neither captions nor classes.
    """
    if isinstance(source, SceneSource):
        return [caption(scene) for scene in source.scenes(indices)]
    if isinstance(source, Table):
        annotations, rows = source.index.annotations, source.rows[np.asarray(indices, np.int64)]
        if annotations.captions is not None:
            captions = [annotations.captions[int(row)] for row in rows]
            return [texts[draw % len(texts)] for texts, draw in zip(captions, draws, strict=True)]
        if annotations.labels is not None:
            return [annotations.classes[int(annotations.labels[row])] for row in rows]
    raise ValueError(f"{source.info.name!r} has neither captions nor classes to compare")

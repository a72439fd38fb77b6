"""Embed: texts and pictures as vectors of one space."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.systems.two_towers.request import Embed
from triptych.vision.given_pictures import kept_pictures
from triptych.vision.pixels import read_picture
from triptych.weights.loaded import Load, Loaded, require_tokenizer


class Ranking(NamedTuple):
    """Pictures in order, by their number."""

    order: tuple[int, ...]  # the best first; of equal ones the first given
    scores: tuple[float, ...]  # cosine with the text, of each picture as given


def rerank(
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]], prompt: str, loaded: Loaded
) -> Ranking:
    """Pictures by their cosine with a text, which orders them as CLIP score and logits do.

    Raises:
        ValueError: the model is no CLIP or SigLIP, or gives a picture no finite vector.
    """
    image, text = loaded.embed_image(pictures), loaded.embed_text([prompt])
    scores = (image.double() * text.double()).sum(1).tolist()
    bad = [number for number, score in enumerate(scores) if score != score]
    if bad:
        raise ValueError(f"{loaded.name} gives no finite vector for picture {bad[0]} or the text")
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    return Ranking(tuple(order), tuple(scores))


BATCH = 32  # pictures decoded at a time


@dataclass(frozen=True)
class Vector:
    """One input and its vector, or why it has none."""

    kind: Literal["text", "image"]
    input: str
    """The text, or the name of the picture file as given."""
    embedding: Float[Tensor, " D"] | None = None
    """Unit length, float32."""
    cut: str = ""
    """The end of a text that the model has no room for."""
    error: str = ""


@dataclass(frozen=True)
class Vectors:
    """Texts, then pictures, each in the order given; the last one that is yielded holds all."""

    request: Embed
    rows: tuple[Vector, ...]
    done: float = 1.0
    """The share of the work that is done."""


def run(request: Embed, load: Load) -> Iterator[Vectors]:
    """Embed every text and every picture; a bad picture keeps its place and says why.

    Raises:
        ValueError: the model is no CLIP or SigLIP, or reads no text.
    """
    loaded = load(request.model, runtime.device())
    total = len(request.text) + len(request.image)
    rows = _texts(request.text, loaded) if request.text else ()
    for start in range(0, len(request.image), BATCH):
        yield Vectors(request, rows, len(rows) / total)
        rows += _pictures(kept_pictures(request.image)[start : start + BATCH], loaded)
    yield Vectors(request, rows)


def _texts(texts: Sequence[str], loaded: Loaded) -> tuple[Vector, ...]:
    cut = require_tokenizer(loaded).encode(texts).cut
    vectors = loaded.embed_text(texts)
    return tuple(
        Vector("text", text, vector, lost)
        for text, vector, lost in zip(texts, vectors, cut, strict=True)
    )


def _pictures(names: tuple[str, ...], loaded: Loaded) -> tuple[Vector, ...]:
    def one(name: str) -> np.ndarray | str:
        try:
            return read_picture("image", name, channels=3)
        except (ValueError, OSError) as error:
            return getattr(error, "strerror", None) or str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        opened = list(pool.map(one, names))
    vectors = iter(loaded.embed_image([p for p in opened if not isinstance(p, str)]))
    return tuple(
        Vector("image", name, error=picture)
        if isinstance(picture, str)
        else Vector("image", name, next(vectors))
        for name, picture in zip(names, opened, strict=True)
    )

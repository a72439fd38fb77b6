"""What a request makes of rows: columns of a table, or pictures.

A request of a pass is the one of the command, with `HERE` of `settings.py` in place of the picture
or prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from triptych.data import gallery
from triptych.passes.rows import Row
from triptych.running import run
from triptych.system import AnswerPicture
from triptych.systems import find_pipeline
from triptych.systems.classification.answer import rank_labels
from triptych.systems.classification.frozen import embed_gallery
from triptych.systems.classification.pipeline import Classified, read_labels, resolve_templates
from triptych.systems.classification.request import Classify
from triptych.systems.detection.annotations import Annotated, to_plain_json
from triptych.systems.detection.pipeline import detect, embed_queries
from triptych.systems.detection.request import Detect
from triptych.systems.paligemma.pipeline import boxes_in_words, locate
from triptych.systems.paligemma.request import Ask
from triptych.systems.stable_diffusion.request import TextToImage
from triptych.systems.two_towers.labels import embed_labels
from triptych.systems.two_towers.request import Embed
from triptych.vision.pixels import read_named
from triptych.weights.loaded import ANSWERS, Loaded

EMBEDDING = "embedding"
"""The column of vectors of pictures, which a search reads."""


class Result(NamedTuple):
    """What was computed of one row."""

    values: Mapping[str, Any]
    """By the column of the result."""
    error: str = ""
    """Why there is nothing."""
    pictures: Sequence[AnswerPicture] = ()


Compute = Callable[[Sequence[Row]], Iterator[Result]]
"""Results of rows, one each, in their order."""
Columns = Mapping[str, str]
"""The columns of a result, beside key and error, and what they hold: see `outputs.py`."""


class Prepared(NamedTuple):
    """A request with its model, ready for rows."""

    compute: Compute
    columns: Columns


@dataclass(frozen=True)
class Work:
    """What a kind of request needs of a row, and how it is prepared."""

    wants: Literal["picture", "text", "any"]
    prepare: Callable[[Any, Loaded], Prepared]
    """Called once in each process."""
    writes: Literal["parquet", "tar"] = "parquet"


def work_of(request: Any) -> Work:
    """How a request is carried out over many rows.

    Raises:
        ValueError: there is no pass of this request.
    """
    for kind, work in WORK.items():
        if isinstance(request, kind):
            return work
    raise ValueError(f"{type(request).__name__} is no request of a pass")


def _embed(request: Embed, loaded: Loaded) -> Prepared:
    """Vectors of pictures, and of texts where rows have texts."""

    def compute(rows: Sequence[Row]) -> Iterator[Result]:
        pictures = tuple(row.picture for row in rows if row.picture)
        texts = tuple(row.text for row in rows if row.text)
        if not (pictures or texts):
            yield from (Result({}, row.error) for row in rows)
            return
        *_, done = run(replace(request, image=pictures, text=texts), loaded)
        words, seen = iter(done.rows[: len(texts)]), iter(done.rows[len(texts) :])
        for row in rows:
            values: dict[str, Any] = {}
            error = row.error
            if row.text:
                vector = next(words)
                values |= {"text_embedding": vector.embedding.tolist(), "cut": vector.cut}
            if row.picture:
                vector = next(seen)
                error = error or vector.error
                if vector.embedding is not None:
                    values[EMBEDDING] = vector.embedding.tolist()
            yield Result(values, error)

    vector = f"vector {loaded.embed_image([]).shape[1]}"
    return Prepared(compute, {EMBEDDING: vector, "text_embedding": vector, "cut": "text"})


def _classify(request: Classify, loaded: Loaded) -> Prepared:
    """The label with the highest cosine, and all labels, best first."""
    templates = resolve_templates(request.templates)
    labels = read_labels(request.labels)
    text, cut = embed_labels(loaded, labels, templates)
    scale, bias = loaded.model.logit_scale, getattr(loaded.model, "logit_bias", None)

    def compute(rows: Sequence[Row]) -> Iterator[Result]:
        found = gallery.list_pictures([row.picture for row in rows if row.picture])
        best: dict[str, Any] = {}
        skipped = dict(found.skipped)
        features = None
        if found.pictures:
            try:
                *_, features = embed_gallery(loaded, found, request.batch_size)
                skipped |= features.skipped
            except ValueError:  # not one of them can be read
                for decoded in gallery.decode(found, request.batch_size):
                    skipped |= decoded.skipped
                    if decoded.pictures:
                        raise
        if features is not None:
            result = Classified(
                request, labels, templates, features.names, features.features, text,
                str(loaded.model.reads), float(scale.float().exp()),  # type: ignore[operator]
                0.0 if bias is None else float(bias), None, skipped, cut,
            )  # fmt: skip
            ranked = rank_labels(result, len(labels))["pictures"]
            best = {each["file"]: each["labels"] for each in ranked}
        for row in rows:
            if fits := best.get(row.picture):
                yield Result({**fits[0], "labels": fits})
            else:
                yield Result({}, row.error or skipped.get(row.picture, "no picture"))

    columns = {"label": "text", "cosine": "number", "probability": "number", "labels": "labels"}
    return Prepared(compute, columns)


def _detect(request: Detect, loaded: Loaded) -> Prepared:
    """Boxes: around peaks of heat maps of a CLIP or SigLIP, or as a PaliGemma writes them."""
    writes = loaded.card.model in ANSWERS
    if writes:
        boxes_in_words(request, loaded.name)
    queries = None if writes else embed_queries(request, loaded)

    def of_picture(row: Row) -> Mapping[str, Any]:
        pixels = read_named("picture", row.picture, channels=3)
        if queries is None:
            *_, item = locate(request, loaded, pixels)
        else:
            *_, item = detect(request, loaded, pixels, queries)
        height, width = item.size
        scores = tuple(item.boxes.scores.tolist())
        found = Annotated(row.key, height, width, item.boxes.corners, item.names, scores)
        return to_plain_json(found)

    return Prepared(_each(of_picture), {"width": "count", "height": "count", "boxes": "boxes"})


def _ask(request: Ask, loaded: Loaded) -> Prepared:
    """The answer of a language model, and the boxes in it."""
    columns = {"text": "text", "boxes": "boxes"}
    to_answer = find_pipeline(request).module("answer").to_answer

    def of_picture(row: Row) -> Mapping[str, Any]:
        *_, said = run(replace(request, picture=row.picture), loaded)
        values: Mapping[str, Any] = to_answer(said, loaded.name).values
        return {name: values[name] for name in columns if name in values}

    return Prepared(_each(of_picture), columns)


def _draw(request: TextToImage, loaded: Loaded) -> Prepared:
    """Pictures of a prompt; of row number i the seeds follow those of row i - 1."""
    to_answer = find_pipeline(request).module("answer").to_answer

    def compute(rows: Sequence[Row]) -> Iterator[Result]:
        for row in rows:
            if row.error or not row.text:
                yield Result({}, row.error or "no prompt")
                continue
            seed = (request.seed or 0) + request.n * row.number
            one = replace(request, prompt=row.text, seed=seed)
            try:
                *_, drawing = run(one, loaded)
            except ValueError as error:
                yield Result({}, str(error))
                continue
            answer = to_answer(drawing, loaded.name)
            yield Result({"prompt": row.text, "seed": seed}, pictures=answer.pictures)

    return Prepared(compute, {"prompt": "text", "seed": "count"})


def _each(of_picture: Callable[[Row], Mapping[str, Any]]) -> Compute:
    """One picture after the other; one that cannot be read keeps its place and says why."""

    def compute(rows: Sequence[Row]) -> Iterator[Result]:
        for row in rows:
            if row.error or not row.picture:
                yield Result({}, row.error or "no picture")
                continue
            try:
                yield Result(of_picture(row))
            except (ValueError, OSError) as error:
                yield Result({}, getattr(error, "strerror", None) or str(error))

    return compute


def set_threads(count: int) -> None:
    """Threads of torch in this process."""
    torch.set_num_threads(max(1, count))


WORK: Mapping[type, Work] = {
    Embed: Work("any", _embed),
    Classify: Work("picture", _classify),
    Detect: Work("picture", _detect),
    Ask: Work("picture", _ask),
    TextToImage: Work("text", _draw, "tar"),
}

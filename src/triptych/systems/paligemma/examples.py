"""What is asked about pictures in training, and the answers: captions, questions, boxes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.data.captions import batch_texts, captions_of
from triptych.data.scene_source import SceneSource
from triptych.data.source import Columns, Source, SourceInfo
from triptych.scenes.descriptions import questions
from triptych.text.language import LanguageTokenizer
from triptych.text.locations import Box, Located, write_objects

LEARNED_FROM = 5000
"""Pictures whose texts make the vocabulary."""
ABSENT = 4
"""Every how-manieth request to detect names what is in another picture of the batch."""


CAPTION = "caption en"
"""The prefix of a description."""


class Example(NamedTuple):
    """What is asked and what is answered."""

    prefix: str
    suffix: str


@dataclass(frozen=True)
class AskedScenes:
    """Scenes as a `Source` with one more column: `questions`, the pairs of each picture."""

    scenes: SceneSource

    @property
    def info(self) -> SourceInfo:
        return self.scenes.info

    def read(self, indices: Sequence[int]) -> Columns:
        columns = self.scenes.read(indices)
        columns["questions"] = [questions(scene) for scene in self.scenes.scenes(indices)]
        return columns


def with_questions(source: Source, tasks: Sequence[str]) -> Source:
    """The source with what the tasks need.

    Raises:
        ValueError: the source has no questions or boxes.
    """
    if set(tasks) <= {"caption"}:
        return source
    if not isinstance(source, SceneSource):
        raise ValueError(
            f"{source.info.name!r} has no questions and boxes: train on it with --tasks caption"
        )
    return AskedScenes(source)


def draw_examples(
    source: Source, tasks: Sequence[str], templates: Sequence[str]
) -> Callable[[dict[str, Any]], list[Example]]:
    """A function from a batch to an example of each picture, of a task drawn by torch."""
    captions = batch_texts(source, templates)

    def draw(batch: dict[str, Any]) -> list[Example]:
        texts = captions(batch)
        texts = [text if isinstance(text, str) else text[_one_of(len(text))] for text in texts]
        examples = []
        for row, text in enumerate(texts):
            task = tasks[_one_of(len(tasks))]
            if task == "caption":
                examples.append(Example(CAPTION, text))
            elif task == "answer":
                pairs = batch["questions"][row]
                question, answer = pairs[_one_of(len(pairs))]
                examples.append(Example(f"answer en {question}", answer))
            else:
                examples.append(_detect(batch, row))
        return examples

    return draw


def _one_of(count: int) -> int:
    return int(torch.randint(count, ()))


def _detect(batch: dict[str, Any], row: int) -> Example:
    """Boxes of one kind of object, from the top left on; none where it is not there."""
    there = batch["box_labels"][row]
    asked = there
    if _one_of(ABSENT) == 0:
        asked = batch["box_labels"][(row + 1) % len(batch["box_labels"])]
    label = asked[_one_of(len(asked))]
    return Example(f"detect {label}", write_found(batch["boxes"][row], there, label))


def write_found(boxes: Iterable[Any], labels: Sequence[str], label: str) -> str:
    """The answer to a request to detect a label, from all boxes of a picture."""
    found = []
    for box, name in zip(boxes, labels, strict=True):
        left, top, right, bottom = (min(max(float(side), 0.0), 1.0) for side in box)
        if name == label and left < right and top < bottom:
            inside: Box = (left, top, right, bottom)
            found.append(Located(inside, label))
    return write_objects(sorted(found, key=lambda each: (each.box[1], each.box[0])))


def texts_of(source: Source, tasks: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Texts of which the vocabulary is made: what is asked and answered."""
    texts = ["caption en", "answer en", "detect", "segment", " ; "]
    if source.info.has_captions:
        texts += [text for notes in captions_of(source, LEARNED_FROM) for text in notes]
    else:
        names = source.info.classes
        texts += [text.replace("{}", name) for name in names for text in templates]
    if isinstance(source, AskedScenes):
        for scene in source.scenes.scenes(range(LEARNED_FROM)):
            texts += [f"answer en {question} {answer}" for question, answer in questions(scene)]
            texts += [f"detect {thing.colour} {thing.shape}" for thing in scene.things]
    return texts


def encode(
    examples: Sequence[Example], tokenizer: LanguageTokenizer, length: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows of prefix and suffix padded on the right, the lengths of the prefixes and of the rows,
    and how many answers were cut.
    """
    rows, prefixes, cut = [], [], 0
    for prefix, suffix in examples:
        asked = tokenizer.question(prefix)[: length - 1]
        row = asked + tokenizer.answer(suffix)
        cut += len(row) > length
        rows.append(row[:length])
        prefixes.append(len(asked))
    longest = max(map(len, rows))
    padded = [row + [tokenizer.pad] * (longest - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor(prefixes), torch.tensor([*map(len, rows)]), cut


def unasked(source: Source) -> Source:
    """The source below, for functions that know the kinds of sources."""
    return source.scenes if isinstance(source, AskedScenes) else source

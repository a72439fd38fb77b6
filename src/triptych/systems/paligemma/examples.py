"""What is asked about pictures in training, and the answers: captions, questions, boxes, masks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.data.captions import batch_texts, captions_of
from triptych.data.disk.pairs import BETWEEN_PAIR
from triptych.data.scene_source import SceneSource
from triptych.data.source import Columns, Source, SourceInfo
from triptych.scenes.descriptions import questions
from triptych.scenes.drawing import boxes as boxes_of
from triptych.scenes.drawing import masks as masks_of
from triptych.scenes.scene import Scene
from triptych.systems.mask_codes.crops import crop_mask
from triptych.systems.mask_codes.model import MaskCodes
from triptych.systems.paligemma.request import TASKS, Answers
from triptych.text.language import LanguageTokenizer
from triptych.text.locations import MARK, Box, Located, write_objects

LEARNED_FROM = 5000
"""Pictures whose texts make the vocabulary."""
ABSENT = 4
"""Every how-manieth request to detect or segment names what is in another picture of the batch."""
DRAWN = 256
"""Pixels of a side of the scenes whose masks are encoded."""

CAPTION = "caption en"
"""The prefix of a description."""


class Example(NamedTuple):
    """What is asked and what is answered."""

    prefix: str
    suffix: str


@dataclass(frozen=True)
class AskedScenes:
    """Scenes as a `Source` with two more columns: `questions`, the pairs of each picture, and the
    `scenes` themselves.
    """

    scenes: SceneSource

    @property
    def info(self) -> SourceInfo:
        return self.scenes.info

    def read(self, indices: Sequence[int]) -> Columns:
        columns = self.scenes.read(indices)
        columns["scenes"] = self.scenes.scenes(indices)
        columns["questions"] = [questions(scene) for scene in columns["scenes"]]
        return columns


def choose_tasks(source: Source, answers: Answers) -> tuple[str, ...]:
    """The tasks of a training: those asked for, or all that the data has.

    Raises:
        ValueError: the data does not have what a task needs.
    """
    tasks = tuple(answers.tasks)
    if source.info.asked:
        if tasks:
            raise ValueError(f"{source.info.name!r} has questions of its own: leave out tasks")
        return ()
    if isinstance(source, SceneSource):
        return tasks or TASKS[: 4 if answers.mask_codes else 3]
    if answers.mask_codes or not set(tasks) <= {"caption"}:
        raise ValueError(
            f"{source.info.name!r} has captions only, no questions, boxes or masks: leave out "
            "tasks and mask_codes"
        )
    return ("caption",)


def with_questions(source: Source, tasks: Sequence[str]) -> Source:
    """The source with what the tasks need."""
    if isinstance(source, SceneSource) and not set(tasks) <= {"caption"}:
        return AskedScenes(source)
    return source


def draw_examples(
    source: Source,
    tasks: Sequence[str],
    templates: Sequence[str],
    masks: MaskCodes | None = None,
) -> Callable[[dict[str, Any]], list[Example]]:
    """A function from a batch to an example of each picture, of a task drawn by torch; `masks`
    writes those of the task segment.
    """
    if source.info.asked:
        return lambda batch: [read_pair(text) for text in batch["caption"]]
    captions = batch_texts(source, templates)
    side = source.info.shape[0]

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
            elif task == "detect":
                label, there = _choose_label(batch, row)
                found = write_found(batch["boxes"][row], there, label, side)
                examples.append(Example(f"detect {label}", found))
            else:
                assert masks is not None
                label, _ = _choose_label(batch, row)
                found = write_masks(batch["scenes"][row], label, masks, side)
                examples.append(Example(f"segment {label}", found))
        return examples

    return draw


def _one_of(count: int) -> int:
    return int(torch.randint(count, ()))


def _choose_label(batch: dict[str, Any], row: int) -> tuple[str, list[str]]:
    """A kind of object to look for, sometimes one that is not there, and those that are there."""
    there = batch["box_labels"][row]
    asked = there
    if _one_of(ABSENT) == 0:
        asked = batch["box_labels"][(row + 1) % len(batch["box_labels"])]
    return asked[_one_of(len(asked))], there


def write_found(boxes: Iterable[Any], labels: Sequence[str], label: str, side: int) -> str:
    """The answer to a request to detect a label, from all boxes of a picture: those with it, from
    the top left on, in whole pixels of a picture of this side.
    """
    named = [box for box, name in zip(boxes, labels, strict=True) if name == label]
    inside = [
        (left, top, right, bottom)
        for left, top, right, bottom in named
        if max(left, 0) < min(right, 1) and max(top, 0) < min(bottom, 1)
    ]
    return _write([Located(_whole_pixels(box, side), label) for box in inside])


@torch.inference_mode()
def write_masks(scene: Scene, label: str, masks: MaskCodes, side: int) -> str:
    """The answer to a request to segment a label in a scene: boxes, in whole pixels of a picture of
    this side, and codes of the masks in them.
    """
    chosen = [t for t in scene.things if f"{t.colour} {t.shape}" == label]
    if not chosen:
        return ""
    part = replace(scene, things=tuple(chosen))
    boxes = [_whole_pixels(box, side) for box in boxes_of(part)]
    drawn = torch.from_numpy(masks_of(part, DRAWN))
    crops = [crop_mask(mask, box) for mask, box in zip(drawn, boxes, strict=True)]
    codes = masks.encode(torch.stack(crops).to(masks.codes)).tolist()
    return _write([Located(b, label, tuple(c)) for b, c in zip(boxes, codes, strict=True)])


def _whole_pixels(box: Sequence[float], side: int) -> Box:
    """The nearest box of whole pixels, at least one: what lies between pixels cannot be seen."""
    begins, ends = [], []
    for first, last in ((box[0], box[2]), (box[1], box[3])):
        begin = min(max(round(float(first) * side), 0), side - 1)
        begins.append(begin / side)
        ends.append(max(min(round(float(last) * side), side), begin + 1) / side)
    return begins[0], begins[1], ends[0], ends[1]


def _write(found: Sequence[Located]) -> str:
    return write_objects(sorted(found, key=lambda each: (each.box[1], each.box[0])))


def texts_of(source: Source, tasks: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Texts of which the vocabulary is made: what is asked and answered."""
    texts = ["caption en", "answer en", "detect", "segment", " ; "]
    if source.info.asked:
        pairs = [
            read_pair(text) for several in captions_of(source, LEARNED_FROM) for text in several
        ]
        return texts + [MARK.sub("", text) for pair in pairs for text in pair]
    if source.info.has_captions:
        texts += [text for notes in captions_of(source, LEARNED_FROM) for text in notes]
    else:
        names = source.info.classes
        texts += [text.replace("{}", name) for name in names for text in templates]
    if isinstance(source, AskedScenes):
        for scene in source.scenes.scenes(range(LEARNED_FROM)):
            for question, answer in questions(scene):
                texts += [f"answer en {question}", answer]  # a token's space before it counts
            texts += [f"detect {thing.colour} {thing.shape}" for thing in scene.things]
    return texts


def read_pair(text: str) -> Example:
    """A question and its answer from the text in which a source of pairs has them."""
    prefix, _, suffix = text.partition(BETWEEN_PAIR)
    return Example(prefix, suffix)


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

"""How well a model answers about held-out scenes, judged exactly: captions, questions, boxes and
masks, each beside what knows nothing of the picture.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.data.order.batches import take
from triptych.scenes.drawing import boxes as boxes_of
from triptych.scenes.drawing import masks as masks_of
from triptych.scenes.scene import Scene
from triptych.scores.accuracy import wilson_interval
from triptych.systems.detection.annotations import Annotated
from triptych.systems.detection.report import average_precision
from triptych.systems.mask_codes.crops import draw_masks, overlap, place_masks
from triptych.systems.mask_codes.model import MaskCodes
from triptych.systems.paligemma.ask_all import (
    Answering,
    Objects,
    Written,
    ask_all,
    find_objects,
    permit_objects,
)
from triptych.systems.paligemma.examples import CAPTION, AskedScenes, write_masks
from triptych.systems.paligemma.held_out import ANSWER, AT_ONCE, is_true
from triptych.text.language import LanguageTokenizer
from triptych.text.locations import STEPS, Located, parse_objects

OBJECTS = 4
"""Most objects of a scene."""
Figure = dict[str, Any]
Asked = tuple[int, str]
"""The number of a scene, and what is asked of it."""

T = TypeVar("T")


class SceneJudge:
    """A model, and the held-out scenes that it answers about."""

    def __init__(
        self,
        model: Answering,
        tokenizer: LanguageTokenizer,
        test: AskedScenes,
        pictures: int,
        device: torch.device,
    ):
        self.model, self.tokenizer, self.test, self.device = model, tokenizer, test, device
        self.scenes = test.scenes.scenes(range(pictures))
        self.labels = [[f"{t.colour} {t.shape}" for t in scene.things] for scene in self.scenes]

    def captions(self, limit: int) -> Figure:
        """How many captions are true of their picture, and of the next one."""
        asked = [(number, CAPTION) for number in range(len(self.scenes))]
        texts = [answer.text for answer in self._ask(asked, limit)]
        moved = [*self.scenes[1:], self.scenes[0]]
        floor = sum(map(is_true, texts, moved)) / len(texts)
        right = sum(map(is_true, texts, self.scenes))
        return count(right, len(texts)) | {"floor": floor}

    def questions(self) -> dict[str, Figure]:
        """How many questions are answered exactly, one of each kind and picture, by kind; the floor
        gives the most frequent true answer of the kind.
        """
        asked: list[Asked] = []
        truths: list[tuple[str, str]] = []
        for number, pairs in enumerate(self._questions()):
            kinds: dict[str, list[tuple[str, str]]] = {}
            for question, answer in pairs:
                kinds.setdefault(kind_of(question), []).append((question, answer))
            for kind, several in kinds.items():
                question, answer = several[number % len(several)]
                asked.append((number, f"answer en {question}"))
                truths.append((kind, answer))
        answers = [answer.text.strip() for answer in self._ask(asked, ANSWER)]
        figures = {}
        for kind in sorted({kind for kind, _ in truths}):
            own = [
                (text, t) for text, (k, t) in zip(answers, truths, strict=True) if k == kind
            ]  # fmt: skip
            expected = [truth for _, truth in own]
            floor = max(map(expected.count, set(expected)))
            right = sum(text == truth for text, truth in own)
            figures[kind] = count(right, len(own)) | {"floor": floor / len(own)}
        of = len(truths)
        everything = count(sum(each["right"] for each in figures.values()), of)
        floor = sum(each["floor"] * each["of"] for each in figures.values()) / of
        return {"all": everything | {"floor": floor}, **figures}

    def boxes(self) -> Figure:
        """Average precision of boxes, asked of each kind of object in a picture and of one that is
        in the next; the floor gives every picture the boxes of the next one.
        """
        asked = [
            (number, label)
            for number, labels in enumerate(self.labels)
            for label in [*dict.fromkeys(labels), *self._absent(number)]
        ]
        found = self._locate("detect", asked, masks=False)
        side = self.test.info.shape[0]
        truths, detected, absent = [], [], [0, 0]
        for number, (labels, scene) in enumerate(zip(self.labels, self.scenes, strict=True)):
            own = [Located(box, label) for box, label in zip(_boxes(scene), labels, strict=True)]
            truths.append(_annotate(number, side, own))
            objects: list[Located] = []
            scores: list[float] = []
            for (place, label), each in zip(asked, found, strict=True):
                if place == number:
                    objects += each.located
                    scores += each.scores
                    if label not in labels:
                        absent[0] += bool(each.located)
                        absent[1] += 1
            detected.append(_annotate(number, side, objects, scores))
        names = sorted({label for each in (*truths, *detected) for label in each.labels})
        moved = [*detected[1:], detected[0]]
        precision = average_precision(truths, detected, names)
        return {
            "ap50": precision.ap50,
            "ap": precision.ap,
            "floor": average_precision(truths, moved, names).ap50,
            "objects": sum(len(each.labels) for each in truths),
            "boxes": sum(len(each.labels) for each in detected),
            "absent": count(*absent),
            "malformed": sum(len(each.ignored) for each in found),
        }

    def masks(self, codes: MaskCodes) -> Figure:
        """The mean overlap of true masks with those that are drawn; a missing one counts 0.

        Beside it the overlap of the true masks after they became codes, which no answer exceeds by
        much, and of the true boxes, filled.
        """
        asked = [(n, label) for n, labels in enumerate(self.labels) for label in set(labels)]
        asked.sort()
        found = self._locate("segment", asked, masks=True)
        side = self.test.info.shape[0]
        reached: list[float] = []
        coded: list[float] = []
        filled: list[float] = []
        more = 0
        for (number, label), each in zip(asked, found, strict=True):
            scene = self.scenes[number]
            chosen = [i for i, name in enumerate(self.labels[number]) if name == label]
            truth = torch.from_numpy(masks_of(scene, side))[chosen]
            drawn = draw_masks(codes, each.located, side, side)
            reached += match(overlap(truth[:, None], drawn[None]))
            more += max(0, len(drawn) - len(chosen))
            own = parse_objects(write_masks(scene, label, codes, side)).objects
            coded += match(overlap(truth[:, None], draw_masks(codes, own, side, side)[None]))
            whole = torch.ones(len(own), 1, 64, 64)
            boxes = place_masks(whole, [located.box for located in own], side, side)
            filled += match(overlap(truth[:, None], boxes[None]))
        return {
            "miou": sum(reached) / len(reached),
            "objects": len(reached),
            "missing": sum(value == 0 for value in reached),
            "more": more,
            "by_true_codes": sum(coded) / len(coded),
            "floor": sum(filled) / len(filled),
            "malformed": sum(len(each.ignored) for each in found),
        }

    def _questions(self) -> Iterator[Sequence[tuple[str, str]]]:
        for places in _parts(range(len(self.scenes)), AT_ONCE):
            yield from self.test.read(list(places))["questions"]

    def _absent(self, number: int) -> list[str]:
        there = self.labels[number]
        other = self.labels[(number + 1) % len(self.labels)]
        return [label for label in other if label not in there][:1]

    def _ask(self, asked: Sequence[Asked], limit: int, objects: bool = False) -> list[Written]:
        answers: list[Written] = []
        for some in _parts(asked, AT_ONCE):
            image = take(self.test, [number for number, _ in some])["image"]
            grammar, prefixes = None, [prefix for _, prefix in some]
            if objects:
                labels = [[prefix.partition(" ")[2]] for prefix in prefixes]
                masks = prefixes[0].startswith("segment")
                grammar = permit_objects(self.tokenizer, labels, limit, masks)
            images = image.to(self.device)
            answers += ask_all(self.model, self.tokenizer, images, prefixes, limit, grammar)
        return answers

    def _locate(self, task: str, asked: Sequence[Asked], masks: bool) -> list[Objects]:
        longest = max(len(self.tokenizer.encode(f" {label} ; ")) for _, label in asked)
        limit = OBJECTS * (4 + 16 * masks + longest) + 1
        written = self._ask([(n, f"{task} {label}") for n, label in asked], limit, objects=True)
        return [
            find_objects(self.tokenizer, each.text, each.tokens, each.log_probs, STEPS)
            for each in written
        ]


def match(overlaps: Float[Tensor, "N M"]) -> list[float]:
    """The overlap of each of N true masks with its own of M drawn ones, best pairs first; 0 for
    those that are left.
    """
    reached = [0.0] * overlaps.shape[0]
    left = overlaps.clone()
    while left.numel() and (best := float(left.max())) > 0:
        row, column = divmod(int(left.argmax()), left.shape[1])
        reached[row] = best
        left[row], left[:, column] = 0, 0
    return reached


def kind_of(question: str) -> str:
    """What a question of the built-in world is about."""
    starts = {
        "how many": "count", "what color": "colour", "what shape": "shape", "what texture":
        "texture", "what pattern": "pattern", "is there": "presence",
    }  # fmt: skip
    for start, kind in starts.items():
        if question.startswith(start):
            return kind
    return "size" if "large or small" in question else "relation"


def count(right: int, of: int) -> Figure:
    """A share as two counts, with its 95 % interval."""
    low, high = wilson_interval(right, of) if of else (0.0, 1.0)
    return {"right": right, "of": of, "share": right / max(of, 1), "low": low, "high": high}


def _boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    return [tuple(box) for box in boxes_of(scene).clip(0, 1).tolist()]  # type: ignore[misc]


def _annotate(
    number: int, side: int, located: Sequence[Located], scores: Sequence[float] = ()
) -> Annotated:
    boxes = torch.tensor([each.box for each in located]).reshape(-1, 4)
    labels = tuple(each.label for each in located)
    return Annotated(f"{number}", side, side, boxes, labels, tuple(scores))


def _parts(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(whole), size):
        yield whole[begin : begin + size]

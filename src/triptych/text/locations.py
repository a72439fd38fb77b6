"""Boxes and masks as words: `<loc0123>` for a place along a side, `<seg045>` for a part of a mask.

PaliGemma writes an object as four locations (top, left, bottom, right), for a mask sixteen codes,
and its label; objects are separated by ` ; ` (arXiv:2407.07726; big_vision, segmentation.py of
proj/paligemma). Boxes here are x0, y0, x1, y1, in shares of the picture's sides.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

PLACES = 1024
"""Locations: 0 to 1,023."""
CODES = 128
"""Different codes of masks."""
MASK = 16
"""Codes of one mask."""
STEPS = 1023
"""By what a location is divided: 1,023 in big_vision, so that 1 is reached; 1,024 in some others'
code.
"""
BETWEEN = " ; "
LOCATION_NAMES = tuple(f"<loc{place:04d}>" for place in range(PLACES))
CODE_NAMES = tuple(f"<seg{code:03d}>" for code in range(CODES))
Box = tuple[float, float, float, float]

OBJECT = re.compile(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})?([^<;]*)")
NUMBER = re.compile(r"\d+")
MARK = re.compile(r"<(?:loc|seg)[^>]*>")


class Located(NamedTuple):
    """An object in a picture."""

    box: Box
    label: str
    codes: tuple[int, ...] = ()
    """Sixteen codes of its mask, row by row, or none."""


def write_box(box: Box, steps: int = STEPS) -> str:
    """Four locations: top, left, bottom, right.

    Raises:
        ValueError: the box is not inside the picture, or empty.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"a box must be x0 < x1 and y0 < y1 within [0, 1], not {box}")
    numbers = [min(round(side * steps), PLACES - 1) for side in (top, left, bottom, right)]
    for first in (0, 1):  # thinner than a step
        if numbers[first] == numbers[first + 2]:
            grows = numbers[first] < PLACES - 1
            numbers[first + 2 if grows else first] += 1 if grows else -1
    return "".join(LOCATION_NAMES[number] for number in numbers)


def read_box(numbers: Sequence[int], steps: int = STEPS) -> Box:
    """A box from four locations: top, left, bottom, right."""
    top, left, bottom, right = (number / steps for number in numbers)
    return left, top, right, bottom


def write_objects(objects: Sequence[Located], steps: int = STEPS) -> str:
    """Objects as the model writes them."""
    words = []
    for each in objects:
        codes = "".join(CODE_NAMES[code] for code in each.codes)
        words.append(f"{write_box(each.box, steps)}{codes} {each.label}")
    return BETWEEN.join(words)


class Parsed(NamedTuple):
    """The objects in a text, and what of the text is none."""

    objects: tuple[Located, ...]
    ignored: tuple[str, ...]


def parse_objects(text: str, steps: int = STEPS) -> Parsed:
    """Read objects from any text, also one that the model wrote without a grammar.

    An object counts if its four locations follow each other and enclose an area, and its codes are
    sixteen or none; everything else with a location or a code in it is ignored, and returned.
    """
    objects: list[Located] = []
    ignored: list[str] = []
    end = 0
    for match in OBJECT.finditer(text):
        if MARK.search(between := text[end : match.start()]):
            ignored.append(between.strip(" ;"))
        end = match.end()
        places = [int(number) for number in NUMBER.findall(match[1])]
        codes = tuple(int(number) for number in NUMBER.findall(match[2] or ""))
        top, left, bottom, right = places
        fits = max(places) < PLACES and bottom > top and right > left
        if fits and all(code < CODES for code in codes):
            objects.append(Located(read_box(places, steps), match[3].strip(), codes))
        else:
            ignored.append(match[0].strip(" ;"))
    if MARK.search(rest := text[end:]):
        ignored.append(rest.strip(" ;"))
    return Parsed(tuple(objects), tuple(ignored))


class Names(Protocol):
    """What a grammar needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def require(self, name: str) -> int: ...


class ObjectGrammar:
    """Which tokens may follow, so that an answer is a list of objects with the labels asked for.

    An answer is empty, or objects that are separated by ` ; `. A box encloses an area, a mask has
    sixteen codes, and an object that might not fit into the answer is not begun.
    """

    def __init__(
        self, names: Names, labels: Sequence[str], ends: Sequence[int], most: int, masks: bool
    ):
        """
        Args:
            labels: what may be found.
            ends: tokens that end the answer.
            most: tokens of the answer, its end token included.
            masks: whether every box is followed by the codes of a mask.

        Raises:
            ValueError: no labels, or a vocabulary without locations or codes.
        """
        if not labels or not all(label.strip() for label in labels):
            raise ValueError("name at least one thing to find, and no empty ones")
        self._places = [names.require(name) for name in LOCATION_NAMES]
        self._number = {token: place for place, token in enumerate(self._places)}
        self._codes = [names.require(name) for name in CODE_NAMES] if masks else []
        self._ends = list(ends)
        words = [names.encode(f" {label.strip()}") for label in labels]
        joined = names.encode(f" {labels[0].strip()}{BETWEEN}")
        self._between = joined[len(words[0]) :]
        self._label: dict[int | None, Mapping] = {}  # type: ignore[type-arg]
        for word in words:
            node = self._label
            for token in word:
                node = node.setdefault(token, {})  # type: ignore[assignment]
            node[None] = {}  # a label may end here
        self._most = most
        self._object = 4 + (MASK if masks else 0) + max(map(len, words)) + 1
        if self._object > most:
            raise ValueError(f"an answer of {most} tokens has no room for an object")

    def allowed(self, made: Sequence[int]) -> list[int]:
        """The tokens that may follow those made so far, which this grammar allowed."""
        at = 0
        while True:
            corners = made[at : at + 4]
            if len(corners) < 4:
                found = self._corners([self._number[token] for token in corners])
                return [*found, *self._ends] if not made else found
            at += 4
            if self._codes and len(made) - at < MASK:
                return self._codes
            at += MASK if self._codes else 0
            node: Mapping[int | None, Mapping] = self._label  # type: ignore[type-arg]
            while at < len(made) and made[at] in node:
                node = node[made[at]]
                at += 1
            if at == len(made):
                return self._after(node, at)
            for token in self._between:
                if at == len(made):
                    return [token]
                at += 1

    def _after(self, node: Mapping[int | None, object], at: int) -> list[int]:
        """After a part of a label: more of it, and where it is one, the end or another object."""
        found = [token for token in node if token is not None]
        if None in node:
            room = self._most - at - len(self._between)
            found += [*self._ends, *(self._between[:1] if room >= self._object else [])]
        return found

    def _corners(self, places: Sequence[int]) -> list[int]:
        """Locations that may follow: the first two leave room for the others beyond them."""
        if len(places) < 2:
            return self._places[:-1]
        return self._places[places[len(places) - 2] + 1 :]

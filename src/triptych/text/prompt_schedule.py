r"""Prompts whose text changes from step to step, and prompts composed of several.

The grammar is the one that AUTOMATIC1111 documents; `weighting.py` reads the text of a step.

- `[from:to:when]`, `[to:when]`, `[from::when]`: `from` up to step `when`, `to` after it. With a
  point `when` is a share of the steps, without one a number of steps: 0.5 is half of them, 1 is one
  step and 1.0 all of them.
- `[a|b|c]`: a in the first step, b in the second, c in the third, a in the fourth.
- `a AND b :0.7`: the predictions for both, with weights (`diffusion/guidance.py`).

The first two can be nested, in each other and in weights: `[(a:1.2):[b|c]:0.5]`. A bracket that is
neither is plain text, and so is every bracket around it. A `|` or `\` that then is left makes the
complete prompt plain text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from triptych.text.limits import MAX_WEIGHT

MAX_DEPTH = 32
SHOWN = 4  # notes of one kind
LENGTH = 60  # characters of a text in a note

TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]++|\\")
WHEN = re.compile(r"\s*+([+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?)\s*+")
AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r"\s*+[-+]?(?:\d++\.?|\d*+\.\d++)\s*+")
PAIRS = {")": "(", "]": "["}


class Switch(NamedTuple):
    """One text up to a step, another after it."""

    before: "Texts"
    after: "Texts"
    when: str

    def last(self, steps: int) -> int:
        """The last step of `before`."""
        number = float(self.when) * (steps if "." in self.when else 1)
        return int(max(-1.0, min(number, steps)))


class Alternate(NamedTuple):
    """Texts that take turns."""

    options: tuple["Texts", ...]


Text: TypeAlias = str | Switch | Alternate
Texts: TypeAlias = tuple[Text, ...]


class PromptSchedule(NamedTuple):
    """A prompt as a function of the step."""

    texts: Texts
    notes: tuple[str, ...] = ()
    """For the user: brackets that look like a schedule and are read as text."""

    def at(self, step: int, steps: int) -> str:
        """The text of a step, 1 to `steps`."""
        return _text_at(self.texts, step, steps)

    def unread(self, steps: int) -> tuple[str, ...]:
        """For the user: texts that none of so many steps reads."""
        return _shorten(list(dict.fromkeys(_unread(self.texts, steps))))


class Weighted(NamedTuple):
    """One prompt of a composition."""

    text: str
    weight: float


def split_composition(prompt: str, *, lone_weight: bool = False) -> list[Weighted]:
    """The prompts between `AND`s, with the weights behind their last colons.

    `lone_weight` reads a weight behind a prompt without `AND` too, as AUTOMATIC1111 does: "at 9:30"
    is "at 9" with weight 30.

    Raises:
        ValueError: a weight outside -100 to 100.
    """
    texts = AND.split(prompt)
    if len(texts) > 1:
        return [_split_weight(text) for text in texts]
    part = _split_weight(prompt) if lone_weight else Weighted(prompt, 1.0)
    return [Weighted(prompt, 1.0) if part.weight == 1 and part.text == prompt.strip() else part]


def is_composed(prompt: str, *, lone_weight: bool = False) -> bool:
    """Whether it is more than one prompt of weight 1, besides those of weight 0."""
    parts = split_composition(prompt, lone_weight=lone_weight)
    return [weight for _, weight in parts if weight] != [1.0]


def _split_weight(text: str) -> Weighted:
    start, colon, end = text.rpartition(":")
    if not colon or not WEIGHT.fullmatch(end):
        return Weighted(text.strip(), 1.0)
    weight = float(end)
    if not abs(weight) <= MAX_WEIGHT:
        raise ValueError(
            f"the prompt {start.strip()[:40]!r} has the weight {weight:g}, outside "
            f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}: give another, or end it with another word"
        )
    return Weighted(start.strip(), weight)


@dataclass
class _Open:
    """A bracket that waits for its end."""

    bracket: str
    begin: int  # of its content, among the texts so far
    marks: list[int] = field(default_factory=list)  # places of its colons and bars, likewise
    depth: int = 0  # of the schedules in it


def parse_schedule(prompt: str) -> PromptSchedule:
    """Read a prompt, in linear time.

    Raises:
        ValueError: schedules are nested in each other more than 32 times.
    """
    texts: list[Text] = []
    waiting: list[_Open] = []
    plain: list[str] = []  # groups that look like schedules
    left = 0  # bars that belong to no alternation, and backslashes before nothing
    for token in TOKEN.findall(prompt):
        texts.append(token)
        if token in ("(", "["):
            waiting.append(_Open(token, len(texts)))
        elif token in (":", "|"):
            left += token == "|"
            if waiting:
                waiting[-1].marks.append(len(texts) - 1)
        elif token in PAIRS:
            # brackets that cross make each other plain text, and so does one the brackets around it
            closes = waiting and waiting[-1].bracket == PAIRS[token]
            group = _group(texts, waiting[-1]) if closes else None
            if group is None:
                plain += _describe(texts, waiting)
                if not closes and _ends_like_a_schedule(texts):
                    plain.append("".join(map(_written, texts[-3:])))
                waiting.clear()
                continue
            depth = waiting.pop().depth
            if not isinstance(group, str):
                left -= isinstance(group, Alternate) and len(group.options) - 1
                depth = _check_depth(depth + 1)
            if waiting:
                waiting[-1].depth = max(waiting[-1].depth, depth)
        elif token == "\\":
            left += 1
    plain += _describe(texts, waiting)
    notes = [
        f"{text!r} is no schedule, such as [from:to:0.5]; it is read as text" for text in plain
    ]
    if left and not all(isinstance(text, str) for text in texts):
        notes.append(
            "a | outside of [a|b], or a \\ before nothing, makes all schedules of a prompt plain "
            "text, as in AUTOMATIC1111: remove it to have them followed"
        )
    return PromptSchedule((prompt,) if left else _join(texts), _shorten(notes))


def _group(texts: list[Text], opened: _Open) -> Text | None:
    """Put a schedule that ends here in place of its texts; "" for a weight, None for plain text."""
    marks = {str(texts[place]) for place in opened.marks}
    if opened.bracket == "(" or not marks:
        return "" if not marks or (marks == {":"} and len(opened.marks) == 1) else None
    edges = [opened.begin - 1, *opened.marks, len(texts) - 1]
    parts = [_join(texts[start + 1 : end]) for start, end in pairwise(edges)]
    group: Text
    if marks == {"|"}:
        group = Alternate(tuple(parts))
    else:
        number = parts[-1][0] if len(parts[-1]) == 1 else ""
        when = WHEN.fullmatch(number) if isinstance(number, str) else None
        if when is None or len(parts) > 3 or marks != {":"}:
            return None
        before = parts[0] if len(parts) == 3 else ()
        group = Switch(before, parts[-2], when[1])
    del texts[opened.begin - 1 :]
    texts.append(group)
    return group


def _check_depth(depth: int) -> int:
    if depth > MAX_DEPTH:
        raise ValueError(
            f"the prompt nests schedules in each other more than {MAX_DEPTH} times: remove some "
            "brackets"
        )
    return depth


def _describe(texts: list[Text], waiting: list[_Open]) -> list[str]:
    """The beginnings of square brackets that are plain text although they have colons or bars."""
    begins = [one.begin - 1 for one in waiting if one.bracket == "[" and one.marks]
    return ["".join(map(_written, texts[i : i + LENGTH]))[:LENGTH] for i in begins]


def _ends_like_a_schedule(texts: list[Text]) -> bool:
    colon, number, end = (*[""] * 3, *texts[-3:])[-3:]
    return (colon, end) == (":", "]") and isinstance(number, str) and bool(WHEN.fullmatch(number))


def _written(text: Text) -> str:
    if isinstance(text, str):
        return text
    parts = text.options if isinstance(text, Alternate) else (text.before, text.after)
    mark = "|" if isinstance(text, Alternate) else ":"
    inner = mark.join("".join(map(_written, part)) for part in parts)
    return f"[{inner}]" if isinstance(text, Alternate) else f"[{inner}:{text.when}]"


def _join(texts: list[Text]) -> Texts:
    """The same texts, with neighbours that are strings in one."""
    joined: list[Text] = []
    words: list[str] = []
    for text in texts:
        if isinstance(text, str):
            words.append(text)
            continue
        if words:
            joined.append("".join(words))
            words = []
        joined.append(text)
    return (*joined, "".join(words)) if words else tuple(joined)


def _text_at(texts: Texts, step: int, steps: int) -> str:
    words = []
    for text in texts:
        if isinstance(text, Alternate):
            words.append(_text_at(text.options[(step - 1) % len(text.options)], step, steps))
        elif isinstance(text, Switch):
            words.append(
                _text_at(text.before if step <= text.last(steps) else text.after, step, steps)
            )
        else:
            words.append(text)
    return "".join(words)


def _unread(texts: Texts, steps: int) -> Iterator[str]:
    for text in texts:
        if isinstance(text, Alternate):
            for option in text.options:
                yield from _unread(option, steps)
        elif isinstance(text, Switch):
            last = text.last(steps)
            if not text.before and not text.after:
                yield f"{_written(text)!r} changes nothing: a LoRA in it is used in all steps"
            missed = text.before if last < 1 else text.after if last >= steps else ()
            if missed:
                what = "".join(map(_written, missed))[:LENGTH]
                where = _written(text)[-LENGTH:]
                yield (
                    f"{what!r} is read in none of the {steps} steps, because of {text.when} in "
                    f"{where!r}; a weight is written (words:1.3)"
                )
            for part in (text.before, text.after):
                yield from _unread(part, steps)


def _shorten(notes: list[str]) -> tuple[str, ...]:
    more = len(notes) - SHOWN
    return (*notes[:SHOWN], f"and {more} more of this kind") if more > 0 else tuple(notes)

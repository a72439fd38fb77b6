"""The grammar of captions of the built-in world: `write` and `parse` share one table of words.

A caption gives the number of objects, some of their attributes, the relation of the first two, and
the ground. It mentions every object of the picture; attributes that it does not mention may be
anything. `write` turns such a claim into words, `parse` turns the words into the same claim.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, TypeVar, get_args

from triptych.fields import nearest
from triptych.scenes.scene import (
    COLOURS,
    GROUND_COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTURES,
    Colour,
    GroundColour,
    Pattern,
    Shape,
    Size,
    Texture,
)

Relation = Literal["left", "right", "above", "below"]
Aspect = Literal["count", "colour", "shape", "size", "pattern", "relation", "ground"]
Attribute = Literal["shape", "colour", "size", "pattern"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
NAMED: tuple[Attribute, ...] = get_args(Attribute)
"""The attributes of one object that a caption may mention."""


@dataclass(frozen=True, slots=True)
class Described:
    """A caption's description of one object; None for what it does not mention."""

    shape: Shape | None = None
    colour: Colour | None = None
    size: Size | None = None
    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of a caption, with one entry per object.

    `relation` is the position of the first object relative to the second.
    """

    things: tuple[Described, ...]
    relation: Relation | None = None
    ground: GroundColour | None = None
    texture: Texture | None = None


NOUNS: dict[Shape | None, tuple[str, ...]] = {
    **{shape: (shape,) for shape in SHAPES},
    None: ("object", "shape", "thing"),
}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {"large": ("large", "big"), "small": ("small", "little")}
PATTERN_WORDS: dict[Pattern, tuple[str, ...]] = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
}
PATTERN_TAILS: dict[Pattern, str] = {"striped": " with stripes", "dotted": " with dots"}
TEXTURE_WORDS: dict[Texture, tuple[str, ...]] = {
    "plain": ("plain",),
    "checked": ("checked", "checkered"),
    "grainy": ("grainy", "speckled"),
    "shaded": ("shaded",),
}
GROUND_NOUNS = ("background", "ground", "backdrop")
GROUND_PREPOSITIONS = ("on", "against")
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left": (" to the left of ", " left of "),
    "right": (" to the right of ", " right of "),
    "above": (" above ", " higher than "),
    "below": (" below ", " underneath ", " lower than "),
}
NUMBERS = ("one", "two", "three", "four")
OPENERS = ("a picture of ", "a drawing of ", "an image with ", "here you see ")
THERE = ("there is ", "there are ")  # one, several
ALSO = (", and also ", ", plus ")
OPPOSITE: dict[Relation, Relation] = {
    "left": "right", "right": "left", "above": "below", "below": "above",
}  # fmt: skip

Option = TypeVar("Option")
Choices = Iterator[int]
"""Endless large integers that choose among synonyms; each is used once, modulo their number."""


def choose(options: Sequence[Option], choices: Choices) -> Option:
    """One of several equivalent options."""
    return options[next(choices) % len(options)]


def write(claim: Claim, choices: Choices) -> str:
    """A claim as a caption; equal claims and choices give equal words."""
    if claim.relation is not None:
        first, second = (_write_phrase(d, 1, choices) for d in claim.things[:2])
        text = first + choose(RELATION_WORDS[claim.relation], choices) + second
        if claim.things[2:]:
            text += choose(ALSO, choices) + _write_list(claim.things[2:], choices)[0]
        count = 1
    else:
        text, count = _write_list(claim.things, choices)
    opener = next(choices) % 8
    if opener < len(OPENERS):
        text = OPENERS[opener] + text
    elif opener == len(OPENERS):
        text = THERE[count > 1] + text
    if claim.ground is None and claim.texture is None:
        return text
    words = (
        *((choose(TEXTURE_WORDS[claim.texture], choices),) if claim.texture else ()),
        *((claim.ground,) if claim.ground else ()),
        choose(GROUND_NOUNS, choices),
    )
    ground = f"{choose(GROUND_PREPOSITIONS, choices)} a {' '.join(words)}"
    return f"{ground}, {text}" if next(choices) % 4 == 0 else f"{text} {ground}"


def _write_list(things: Sequence[Described], choices: Choices) -> tuple[str, int]:
    """The phrases of several objects, equal neighbours counted together, and the first count."""
    groups = [(described, len(list(same))) for described, same in groupby(things)]
    phrases = [_write_phrase(described, count, choices) for described, count in groups]
    *head, last = phrases
    return f"{', '.join(head)} and {last}" if head else last, groups[0][1]


def _write_phrase(described: Described, count: int, choices: Choices) -> str:
    words = [choose(SIZE_WORDS[described.size], choices)] if described.size else []
    tail = ""
    if described.pattern is not None:
        if next(choices) % 3 == 0 and described.pattern in PATTERN_TAILS:
            tail = PATTERN_TAILS[described.pattern]
        else:
            words.append(choose(PATTERN_WORDS[described.pattern], choices))
    words += [described.colour] if described.colour else []
    words.append(choose(NOUNS[described.shape], choices))
    if count > 1:
        return " ".join([NUMBERS[count - 1], *words[:-1], _plural(words[-1])]) + tail
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words) + tail


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _lookup(table: dict[Any, tuple[str, ...]], field: str) -> dict[str, tuple[str, Any]]:
    return {word: (field, value) for value, words in table.items() for word in words}


ADJECTIVES: dict[str, tuple[str, Any]] = {
    **_lookup(dict(SIZE_WORDS), "size"),
    **_lookup(dict(PATTERN_WORDS), "pattern"),
    **{colour: ("colour", colour) for colour in COLOURS},
}
GROUND_ADJECTIVES: dict[str, tuple[str, Any]] = {
    **_lookup(dict(TEXTURE_WORDS), "texture"),
    **{colour: ("ground", colour) for colour in GROUND_COLOURS},
}
ONE = {noun: shape for shape, nouns in NOUNS.items() for noun in nouns}
MANY = {_plural(noun): shape for noun, shape in ONE.items()}
GROUND = rf"(?:{'|'.join(GROUND_PREPOSITIONS)}) an? ((?:\w+ ){{1,2}})(?:{'|'.join(GROUND_NOUNS)})"


def parse(caption: str) -> Claim:
    """The claim of a caption that uses the words of this module.

    Raises:
        ValueError: a part that is not understood, which the message names.
    """
    text = " ".join(caption.lower().split()).rstrip(".")
    fields: dict[str, Any] = {}
    match = re.fullmatch(rf"{GROUND},? (.+)", text)
    if match:
        text, adjectives = match[2], match[1]
    elif match := re.fullmatch(rf"(.+?),? {GROUND}", text):
        text, adjectives = match[1], match[2]
    for word in adjectives.split() if match else ():
        name, value = _look_up(word, GROUND_ADJECTIVES, caption)
        fields[name] = value
    for opener in (*OPENERS, *THERE):
        if text.startswith(opener):
            text = text.removeprefix(opener)
            break
    text, *rest = re.split("|".join(ALSO), text, maxsplit=1)
    for relation, wordings in RELATION_WORDS.items():
        for words in wordings:
            if words in text:
                pair = tuple(d for part in text.split(words) for d in _parse_phrase(part, caption))
                if len(pair) != 2:
                    raise ValueError(f"{caption!r}: {words.strip()!r} must be between two objects")
                others = tuple(d for part in rest for d in _parse_list(part, caption))
                return Claim(pair + others, relation, **fields)
    things = tuple(d for part in (text, *rest) for d in _parse_list(part, caption))
    return Claim(things, None, **fields)


def _parse_list(text: str, caption: str) -> list[Described]:
    parts = re.split(r", and |, | and ", text)
    return [described for part in parts for described in _parse_phrase(part, caption)]


def _parse_phrase(phrase: str, caption: str) -> list[Described]:
    """The description in a phrase, once for each object that it counts."""
    fields: dict[str, Any] = {}
    for pattern, tail in PATTERN_TAILS.items():
        if phrase.endswith(tail):
            phrase, fields["pattern"] = phrase.removesuffix(tail), pattern
    number, *words = phrase.split() or [""]
    count = 1 if number in ("a", "an") else NUMBERS.index(number) + 1 if number in NUMBERS else 0
    nouns = ONE if count == 1 else MANY
    if not count or not words or words[-1] not in nouns:
        known = ", ".join(nouns)
        raise ValueError(
            f"{caption!r}: {phrase!r} must be a number ('a', {', '.join(NUMBERS)}), "
            f"adjectives and one of {known}"
        )
    for word in words[:-1]:
        name, value = _look_up(word, ADJECTIVES, caption)
        if name in fields:
            raise ValueError(f"{caption!r}: {phrase!r} gives the {name} twice")
        fields[name] = value
    return [Described(nouns[words[-1]], **fields)] * count


def _look_up(word: str, table: dict[str, tuple[str, Any]], caption: str) -> tuple[str, Any]:
    if word not in table:
        raise ValueError(f"{caption!r}: unknown word {word!r}.{nearest(word, list(table))}")
    return table[word]


def altered(claim: Claim, aspect: Aspect, choices: Choices) -> Claim | None:
    """The claim with one aspect changed, or None if it does not mention that aspect.

    The result can still be true of the same scene, because another object may fit it: check with
    `judge.holds`.
    """
    if aspect == "relation":
        turned = [r for r in RELATIONS if r != claim.relation]
        return replace(claim, relation=choose(turned, choices)) if claim.relation else None
    if aspect == "ground":
        if claim.ground is not None:
            others = [c for c in GROUND_COLOURS if c != claim.ground]
            return replace(claim, ground=choose(others, choices))
        if claim.texture is not None:
            textures = [t for t in TEXTURES if t != claim.texture]
            return replace(claim, texture=choose(textures, choices))
        return None
    if aspect == "count":
        fewest = 2 if claim.relation else 1
        fewer = len(claim.things) > fewest and (len(claim.things) == 4 or next(choices) % 2)
        if fewer:
            return replace(claim, things=claim.things[:-1])
        return replace(claim, things=(*claim.things, claim.things[-1]))
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "pattern": PATTERNS}[aspect]
    named = [i for i, d in enumerate(claim.things) if getattr(d, aspect) is not None]
    if not named:
        return None
    place = choose(named, choices)
    now = claim.things[place]
    other = choose([v for v in values if v != getattr(now, aspect)], choices)
    change: dict[str, Any] = {aspect: other}
    return replace(
        claim, things=(*claim.things[:place], replace(now, **change), *claim.things[place + 1 :])
    )

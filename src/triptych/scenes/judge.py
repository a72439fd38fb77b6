"""Whether a picture of the built-in world satisfies a caption: each attribute, and all together.

The caption is parsed by `captions.py`, the picture recognised by `reader.py`. `agreement` compares
the reader with an independent classifier.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import sqrt

import numpy as np
from jaxtyping import Int

from triptych.scenes.captions import ASPECTS, NAMED, Aspect, Claim, parse
from triptych.scenes.descriptions import fits, relation
from triptych.scenes.reader import Reading
from triptych.scenes.scene import GroundColour, Texture, Thing

DOMINANCE = 1.5  # lower than for writing captions, so that measured positions pass too


@dataclass(frozen=True)
class Verdict:
    """Which parts of a caption are true of a picture; None if the caption does not mention them."""

    whole: bool
    count: bool
    colour: bool | None = None
    shape: bool | None = None
    size: bool | None = None
    pattern: bool | None = None
    relation: bool | None = None
    ground: bool | None = None


def satisfies(reading: Reading, caption: str) -> Verdict:
    """Whether a caption is true of a picture, given as the reader's result.

    With an unrecognised region, no caption is true as a whole, and every count is wrong.

    Raises:
        ValueError: `captions.parse` does not understand the caption.
    """
    claim = parse(caption)
    return holds(claim, reading.things, reading.ground, reading.texture, unread=reading.unread)


def holds(
    claim: Claim,
    things: Sequence[Thing],
    ground: GroundColour | None,
    texture: Texture | None,
    *,
    unread: int = 0,
) -> Verdict:
    """Whether a claim is true of these objects (of a reading or of a `Scene`) on this ground.

    `whole` needs one assignment of the claim's objects to the picture's in which all attributes
    fit. A single attribute only needs each of its values on another object: with the right colours
    on the wrong shapes, `colour` and `shape` are true and `whole` is false.

    Raises:
        ValueError: the claim has no objects, or more than four.
    """
    if not claim.things or len(claim.things) > 4:
        raise ValueError(f"a claim must have one to four objects, not {len(claim.things)}")
    named = {name: [getattr(d, name) for d in claim.things] for name in NAMED}
    seen = {name: [getattr(t, name) for t in things] for name in NAMED}
    parts = {name: _contains(named[name], seen[name]) for name in NAMED if any(named[name])}
    behind = None
    if claim.ground or claim.texture:
        behind = claim.ground in (None, ground) and claim.texture in (None, texture)
    count = unread == 0 and len(things) == len(claim.things)
    whole = count and behind is not False and _fits_all(claim, things)
    related = None
    if claim.relation is not None:
        related = any(_relation_holds(claim, pair) for pair in permutations(things, 2))
    return Verdict(whole, count, relation=related, ground=behind, **parts)


def _contains(values: Sequence[str | None], seen: Sequence[str]) -> bool:
    left = list(seen)
    for value in values:
        if value is not None:
            if value not in left:
                return False
            left.remove(value)
    return True


def _fits_all(claim: Claim, things: Sequence[Thing]) -> bool:
    return any(
        all(fits(d, t) for d, t in zip(claim.things, order, strict=True))
        and (claim.relation is None or _relation_holds(claim, order[:2]))
        for order in permutations(things)
    )


def _relation_holds(claim: Claim, pair: Sequence[Thing]) -> bool:
    first, second = pair
    described = fits(claim.things[0], first) and fits(claim.things[1], second)
    return described and relation(first, second, DOMINANCE) == claim.relation


@dataclass(frozen=True)
class Share:
    """A share as two counts, with its 95 % interval (Wilson 1927)."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if self.of == 0:
            return 0.0, 1.0
        z, n, p = 1.96, self.of, self.value
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def report(verdicts: Iterable[Verdict]) -> dict[Aspect | str, Share]:
    """The shares of true verdicts: `whole`, and each attribute over the captions that mention it.

    Report a share of 200 pictures or more; `Share.of` is their number.
    """
    verdicts = list(verdicts)
    shares: dict[Aspect | str, Share] = {}
    for name in ("whole", *ASPECTS):
        values = [v for v in (getattr(verdict, name) for verdict in verdicts) if v is not None]
        shares[name] = Share(sum(values), len(values))
    return shares


def agreement(
    readings: Sequence[Reading],
    witness: Mapping[str, Int[np.ndarray, " B"]],
    names: Mapping[str, Sequence[str]],
) -> dict[str, Share]:
    """How often the reader and a classifier agree on pictures of one object.

    Args:
        witness: the classifier's answers, one index per picture, for any of `shape`, `colour`,
            `size`, `pattern`, `ground` and `texture`.
        names: the meaning of these indices.

    Only pictures in which the reader sees exactly one object are compared; the share `read` is how
    many these are.

    Raises:
        ValueError: an unknown attribute, or not one index per picture.
    """
    attributes = (*NAMED, "ground", "texture")
    single = [len(r.things) == 1 and not r.unread for r in readings]
    shares = {"read": Share(sum(single), len(single))}
    for name, indices in witness.items():
        if name not in attributes:
            raise ValueError(f"the attributes are {', '.join(attributes)}, not {name!r}")
        if np.shape(indices) != (len(readings),):
            raise ValueError(
                f"{name}: {len(readings)} answers are needed, not an array of {np.shape(indices)}"
            )
        pairs = [
            (
                getattr(reading if name in attributes[-2:] else reading.things[0], name),
                names[name][int(index)],
            )
            for reading, index, one in zip(readings, indices, single, strict=True)
            if one
        ]
        shares[name] = Share(sum(ours == theirs for ours, theirs in pairs), len(pairs))
    return shares

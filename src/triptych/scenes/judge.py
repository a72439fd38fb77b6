"""Whether a picture of the built-in world satisfies a caption: each attribute, and all together.

The caption is parsed by the grammar that writes captions, the picture is read by `scene_reader`; a
second witness that never saw either, a network trained on labels, can be asked to agree.
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

DOMINANCE = 1.5  # less than captions are written with, so that no measured place is arguable either


@dataclass(frozen=True)
class Verdict:
    """What of a caption holds of a picture; None for what the caption does not name."""

    whole: bool
    count: bool
    colour: bool | None = None
    shape: bool | None = None
    size: bool | None = None
    pattern: bool | None = None
    relation: bool | None = None
    ground: bool | None = None


def satisfies(reading: Reading, caption: str) -> Verdict:
    """Whether what was read in a picture is what a caption says.

    A picture with an unread region satisfies no caption as a whole, and its count is wrong.

    Raises:
        ValueError: the caption is not of the grammar of `scene_captions`.
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
    """Whether a claim is true of these objects on this ground; the objects of a `Scene` do as well.

    The whole needs one assignment of the claim's objects to the picture's that fits in everything.
    An attribute by itself needs only that its values can be dealt out to different objects, so a
    picture with the right colours on the wrong shapes has right colours and shapes, and is wrong.
    """
    if not claim.things or len(claim.things) > 4:
        raise ValueError(f"a claim is of one to four objects, not {len(claim.things)}")
    named = {name: [getattr(d, name) for d in claim.things] for name in NAMED}
    seen = {name: [getattr(t, name) for t in things] for name in NAMED}
    parts = {name: _dealt(named[name], seen[name]) for name in NAMED if any(named[name])}
    behind = None
    if claim.ground or claim.texture:
        behind = claim.ground in (None, ground) and claim.texture in (None, texture)
    count = unread == 0 and len(things) == len(claim.things)
    whole = count and behind is not False and _together(claim, things)
    related = None
    if claim.relation is not None:
        related = any(_lies(claim, pair) for pair in permutations(things, 2))
    return Verdict(
        whole,
        count,
        parts.get("colour"),
        parts.get("shape"),
        parts.get("size"),
        parts.get("pattern"),
        related,
        behind,
    )


def _dealt(wanted: Sequence[str | None], seen: Sequence[str]) -> bool:
    left = list(seen)
    for value in wanted:
        if value is not None:
            if value not in left:
                return False
            left.remove(value)
    return True


def _together(claim: Claim, things: Sequence[Thing]) -> bool:
    return any(
        all(fits(d, t) for d, t in zip(claim.things, order, strict=True))
        and (claim.relation is None or _lies(claim, order[:2]))
        for order in permutations(things)
    )


def _lies(claim: Claim, pair: Sequence[Thing]) -> bool:
    first, second = pair
    described = fits(claim.things[0], first) and fits(claim.things[1], second)
    return described and relation(first, second, DOMINANCE) == claim.relation


@dataclass(frozen=True)
class Share:
    """How many of how many, with the 95 % interval of Wilson (1927)."""

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
    """The share of verdicts that hold: `whole`, and each attribute where a caption names it.

    A figure is worth reporting from some 200 pictures a group; `Share.of` says how many there were.
    """
    verdicts = list(verdicts)
    shares: dict[Aspect | str, Share] = {}
    for name in ("whole", *ASPECTS):
        given = [v for v in (getattr(verdict, name) for verdict in verdicts) if v is not None]
        shares[name] = Share(sum(given), len(given))
    return shares


def agreement(
    readings: Sequence[Reading],
    witness: Mapping[str, Int[np.ndarray, " B"]],
    names: Mapping[str, Sequence[str]],
) -> dict[str, Share]:
    """How often the reader and a second witness name the same attribute of pictures of one object.

    `witness` has an index per picture for any of `shape`, `colour`, `size`, `pattern`, `ground` and
    `texture`, and `names` what the indices mean. Only pictures where the reader reads exactly one
    object are compared; `read` says how many of all pictures those are.

    Raises:
        ValueError: an unknown attribute, or not one index per picture.
    """
    known = (*NAMED, "ground", "texture")
    single = [len(r.things) == 1 and not r.unread for r in readings]
    shares = {"read": Share(sum(single), len(single))}
    for name, indices in witness.items():
        if name not in known:
            raise ValueError(f"a witness names {', '.join(known)}, not {name!r}")
        if np.shape(indices) != (len(readings),):
            raise ValueError(
                f"{name}: {len(readings)} readings need as many answers, not {np.shape(indices)}"
            )
        pairs = [
            (
                getattr(reading if name in known[-2:] else reading.things[0], name),
                names[name][int(index)],
            )
            for reading, index, one in zip(readings, indices, single, strict=True)
            if one
        ]
        shares[name] = Share(sum(ours == theirs for ours, theirs in pairs), len(pairs))
    return shares

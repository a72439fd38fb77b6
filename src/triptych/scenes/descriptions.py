"""Captions of a scene, relations between its objects, and questions with answers.

The choice among synonyms is a function of the scene's key.
"""

from collections.abc import Iterator

from triptych.scenes.captions import (
    NAMED,
    NUMBERS,
    OPPOSITE,
    RELATION_WORDS,
    Choices,
    Claim,
    Described,
    Relation,
    choose,
    write,
)
from triptych.scenes.scene import COLOURS, HELD_OUT, SEEN, SHAPES, Scene, Thing

DOMINANCE = 2.0  # "left of" needs |dx| to be at least this many times |dy|


def choices(key: int, stream: int = 0) -> Choices:
    """Endless 31-bit integers that depend on a scene's key and the stream only."""
    state = (key + stream * 0xD1342543DE82EF95) & (2**64 - 1)
    while True:
        state = (state + 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        yield ((z ^ (z >> 27)) * 0x94D049BB133111EB & (2**64 - 1)) >> 33


def relation(thing: Thing, other: Thing, dominance: float = DOMINANCE) -> Relation | None:
    """The position of `thing` relative to `other`; None if neither direction dominates."""
    dx, dy = thing.x - other.x, thing.y - other.y
    if abs(dx) >= dominance * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= dominance * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def describe(thing: Thing, *names: str) -> Described:
    """The named attributes of an object."""
    return Described(**{name: getattr(thing, name) for name in names})


def fits(described: Described, thing: Thing) -> bool:
    """Whether an object has every attribute that a description mentions."""
    return all(getattr(described, n) in (None, getattr(thing, n)) for n in NAMED)


def claims(scene: Scene) -> tuple[Claim, ...]:
    """The claims of a scene's captions, in their order; all are true of the scene."""
    return tuple(claim(scene) for claim in (_full, _short, _partial, _counted)) + tuple(
        _related(scene)
    )


def captions(scene: Scene) -> tuple[str, ...]:
    """Four or five English captions; the same scene always has the same ones.

    They mention all attributes; colours and shapes; some attributes; counts; and, if two objects
    are clearly beside or above one another, their relation.
    """
    return tuple(write(claim, choices(scene.key, 1 + i)) for i, claim in enumerate(claims(scene)))


def caption(scene: Scene) -> str:
    """One of the captions, all equally likely: the caption for training."""
    kind = next(choices(scene.key)) % 5
    related = _related(scene) if kind == 4 else []
    kind = kind if kind < 4 else 4 if related else next(choices(scene.key, 9)) % 4
    claim = related[0] if kind == 4 else (_full, _short, _partial, _counted)[kind](scene)
    return write(claim, choices(scene.key, 1 + kind))


def _shuffled(scene: Scene, pick: Choices) -> list[Thing]:
    things = list(scene.things)
    return [things.pop(next(pick) % len(things)) for _ in scene.things]


def _full(scene: Scene) -> Claim:
    things = tuple(describe(t, *NAMED) for t in _shuffled(scene, choices(scene.key, 11)))
    return Claim(things, None, scene.ground.colour, scene.ground.texture)


def _short(scene: Scene) -> Claim:
    pick = choices(scene.key, 12)
    things = [describe(t, "shape", "colour") for t in _shuffled(scene, pick)]
    things = sorted(things, key=things.index)  # equal ones together
    return Claim(tuple(things), None, scene.ground.colour if next(pick) % 2 else None)


def _partial(scene: Scene) -> Claim:
    pick = choices(scene.key, 13)
    names = ("shape", *(n for n in ("colour", "size", "pattern") if next(pick) % 2))
    things = tuple(describe(t, *names) for t in _shuffled(scene, pick))
    ground, texture = (next(pick) % 2 for _ in range(2))
    return Claim(
        things,
        None,
        scene.ground.colour if ground else None,
        scene.ground.texture if texture else None,
    )


def _counted(scene: Scene) -> Claim:
    pick = choices(scene.key, 14)
    name = choose(((), ("shape",), ("colour",), ("shape",)), pick)
    things = [describe(t, *name) for t in _shuffled(scene, pick)]
    things = sorted(things, key=things.index)
    return Claim(tuple(things), None, scene.ground.colour if next(pick) % 3 == 0 else None)


def _related(scene: Scene) -> list[Claim]:
    """A claim with a relation, if words can distinguish two objects whose relation is clear."""
    pick = choices(scene.key, 15)
    things = _shuffled(scene, pick)
    for i, thing in enumerate(things):
        for other in things[i + 1 :]:
            position = relation(thing, other)
            for names in (("shape", "colour"), NAMED):
                pair = describe(thing, *names), describe(other, *names)
                if position and all(sum(fits(d, t) for t in things) == 1 for d in pair):
                    rest = [
                        describe(t, *names) for t in things if t is not thing and t is not other
                    ]
                    ground = scene.ground.colour if next(pick) % 3 == 0 else None
                    return [Claim((*pair, *rest), position, ground)]
    return []


def questions(scene: Scene) -> tuple[tuple[str, str], ...]:
    """Questions with their only correct answers; "the circle" is used only if there is just one."""
    things, pick = scene.things, choices(scene.key, 20)
    pairs = [
        ("how many objects are there?", NUMBERS[len(things) - 1]),
        ("what color is the background?", scene.ground.colour),
        ("what texture does the background have?", scene.ground.texture),
    ]
    for shape in sorted({t.shape for t in things}, key=SHAPES.index):
        same = [t for t in things if t.shape == shape]
        plural = shape + ("es" if shape.endswith("s") else "s")
        pairs.append((f"how many {plural} are there?", NUMBERS[len(same) - 1]))
        if len(same) == 1:
            (only,) = same
            pairs += [
                (f"what color is the {shape}?", only.colour),
                (f"is the {shape} large or small?", only.size),
                (f"what pattern does the {shape} have?", only.pattern),
            ]
    for colour in sorted({t.colour for t in things}, key=COLOURS.index):
        same = [t for t in things if t.colour == colour]
        if len(same) == 1:
            pairs.append((f"what shape is the {colour} object?", same[0].shape))
    present = {(t.shape, t.colour) for t in things}
    there = choose(sorted(present), pick)
    # A "no" must not reveal which pairs are held out, so it is about a pair of the same split.
    candidates = HELD_OUT if there in HELD_OUT else SEEN
    absent = choose([pair for pair in candidates if pair not in present], pick)
    for (shape, colour), answer in ((there, "yes"), (absent, "no")):
        article = "an" if colour[0] in "aeiou" else "a"
        pairs.append((f"is there {article} {colour} {shape}?", answer))
    return (*pairs, *_spatial(scene, pick))


def _spatial(scene: Scene, pick: Choices) -> Iterator[tuple[str, str]]:
    for claim in _related(scene):
        first, second = (f"the {d.colour} {d.shape}" for d in claim.things[:2])
        if claim.things[0].size is not None or claim.relation is None:
            continue  # colour and shape do not distinguish them
        words, opposite = (
            RELATION_WORDS[r][0].strip() for r in (claim.relation, OPPOSITE[claim.relation])
        )
        yield f"is {first} {words} {second}?", "yes"
        yield f"is {first} {opposite} {second}?", "no"
        yield f"where is {first}, seen from {second}?", claim.relation

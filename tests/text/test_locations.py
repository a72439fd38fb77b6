"""Boxes and masks as words, and a grammar that permits nothing else."""

import itertools
import random

import pytest
import torch

from triptych.nn.decoding import Sampling, decode
from triptych.text.locations import (
    CODE_NAMES,
    CODES,
    LOCATION_NAMES,
    PLACES,
    Located,
    ObjectGrammar,
    parse_objects,
    read_box,
    write_box,
    write_objects,
)

WORDS = ["▁cat", "▁", "cat", "▁remote", "▁control", "▁dog", "▁;", ";", "\n", "dog", "x"]


class Names:
    """A tokenizer of a few words beside all locations and codes."""

    def __init__(self, codes=True):
        names = ["<eos>", *WORDS, *LOCATION_NAMES, *(CODE_NAMES if codes else ())]
        self.ids = {name: number for number, name in enumerate(names)}
        self.names = names

    def require(self, name):
        if name not in self.ids:
            raise ValueError(f"its vocabulary has no {name}")
        return self.ids[name]

    def encode(self, text):
        pieces, rest = [], text.replace(" ", "▁")
        while rest:
            piece = next(w for w in sorted(WORDS, key=len, reverse=True) if rest.startswith(w))
            pieces.append(self.ids[piece])
            rest = rest[len(piece) :]
        return pieces

    def text(self, tokens):
        return "".join(self.names[token] for token in tokens).replace("▁", " ")


NAMES = Names()
LABELS = ["cat", "remote control", "remote"]


@pytest.mark.parametrize("steps", [1023, 1024])
def test_every_location_comes_back(steps):
    """All 1,024, in each of the four places."""
    for place in range(PLACES - 1):
        low, high = place / steps, (place + 1) / steps
        for numbers in ((place, 0, PLACES - 1, 1), (0, place, 1, PLACES - 1)):
            box = read_box(numbers, steps)
            assert write_box(box, steps) == "".join(LOCATION_NAMES[n] for n in numbers)
        for box in ((0.0, low, 1.0, high), (low, 0.0, high, 1.0)):
            written = write_box(box, steps)
            (found,) = parse_objects(written, steps).objects
            assert max(abs(a - b) for a, b in zip(found.box, box, strict=True)) < 1 / 1000


def test_the_order_is_that_of_big_vision():
    """ymin, xmin, ymax, xmax, rounded to 1,023 steps."""
    assert write_box((0.1, 0.2, 0.5, 1.0)) == "<loc0205><loc0102><loc1023><loc0512>"
    assert read_box((0, 0, 1023, 1023)) == (0, 0, 1, 1)
    assert read_box((0, 0, 512, 512), 1024) == (0, 0, 0.5, 0.5)


def test_a_box_thinner_than_a_step_keeps_an_area():
    for box in ((0.5, 0.5, 0.50001, 0.50001), (0.99999, 0.0, 1.0, 1.0)):
        (found,) = parse_objects(write_box(box)).objects
        assert found.box[0] < found.box[2] and found.box[1] < found.box[3]


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (0, 0, 1.1, 1), (-0.1, 0, 1, 1), (0.6, 0, 0.5, 1)]
)
def test_what_is_no_box_is_refused(box):
    with pytest.raises(ValueError, match="a box must be"):
        write_box(box)


def test_objects_come_back():
    codes = tuple(range(16))
    objects = (
        Located(read_box((1, 2, 300, 400)), "red circle"),
        Located(read_box((0, 0, 9, 9)), "x", codes),
    )
    assert parse_objects(write_objects(objects)) == (objects, ())


@pytest.mark.parametrize(
    ("text", "labels", "ignored"),
    [
        ("", [], 0),
        ("a cat on a mat", [], 0),
        ("<loc0001><loc0001><loc0100><loc0100> cat", ["cat"], 0),
        ("<loc0001><loc0001><loc0100><loc0100>cat;", ["cat"], 0),
        ("<loc0001><loc0001><loc0100> cat ; <loc0001><loc0001><loc0100><loc0100> dog", ["dog"], 1),
        ("<loc0100><loc0001><loc0001><loc0100> cat", [], 1),
        ("<loc0001><loc0001><loc0001><loc0100> cat", [], 1),
        ("<loc0001><loc0001><loc9999><loc0100> cat", [], 1),
        ("<loc0001><loc0001><loc0100><loc0100>" + "<seg001>" * 15 + " cat", [""], 1),
        ("<loc0001><loc0001><loc0100><loc0100>" + "<seg128>" * 16 + " cat", [], 1),
        ("I see <loc0001><loc0001><loc0100><loc0100> cat ; and <loc0001>", ["cat"], 1),
        ("<loc1><loc00001> cat", [], 1),
    ],
)
def test_free_text_is_read_tolerantly(text, labels, ignored):
    parsed = parse_objects(text)
    assert [each.label for each in parsed.objects] == labels
    assert len(parsed.ignored) == ignored


@pytest.mark.parametrize("rows", [12, pytest.param(450, marks=pytest.mark.slow)])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ["random", "ends", "locations", "separators", "labels", "last"])
def test_no_answer_is_malformed(kind, masks, rows):
    """Also with adversarial logits, which want the end, more locations, separators or words
    everywhere: every answer is read whole, and the labels are those asked for. 450 each at night,
    5,400 together.
    """
    generator = torch.Generator().manual_seed(0)
    most = 60
    want = torch.zeros(len(NAMES.names))
    first = NAMES.ids["<loc0000>"]
    if kind == "ends":
        want[0] = 9.0
    if kind == "locations":
        want[first : first + PLACES] = 9.0
    if kind == "last":
        want[first + PLACES - 2 : first + PLACES] = 30.0
    if kind == "separators":
        want[[NAMES.ids[w] for w in ("▁;", ";", "▁")]] = 30.0
    if kind == "labels":
        want[1 : len(WORDS) + 1] = 30.0
    grammar = ObjectGrammar(NAMES, LABELS, [0], most, masks)
    made = [[] for _ in range(rows)]

    def logits(_=None):
        return want + torch.randn(rows, len(want), generator=generator)

    def permit(row, tokens, scores):
        mask = torch.zeros(len(want), dtype=torch.bool)
        mask[grammar.allowed(tokens)] = True
        return mask

    steps = decode(logits(), logits, limit=most, sampling=Sampling(1.0), ends=[0], grammar=permit)
    reasons = [""] * rows
    for token in itertools.chain.from_iterable(steps):
        reasons[token.row] = token.reason
        if token.reason != "end":
            made[token.row].append(token.id)
    assert set(reasons) == {"end"}  # none was cut off
    found = 0
    for row in made:
        text = NAMES.text(row)
        parsed = parse_objects(text)
        assert parsed.ignored == ()
        assert text == write_objects(parsed.objects)
        assert {each.label for each in parsed.objects} <= set(LABELS)
        assert all(len(each.codes) == (16 if masks else 0) for each in parsed.objects)
        found += len(parsed.objects)
    assert found >= (rows if kind != "ends" else 1)


def test_every_well_formed_answer_is_permitted():
    rng = random.Random(0)
    for masks in (False, True):
        grammar = ObjectGrammar(NAMES, LABELS, [0], 200, masks)
        for count in range(4):
            made = []
            for number in range(count):
                made += NAMES.encode(" ; ") if number else []
                top, left = rng.randrange(PLACES - 1), rng.randrange(PLACES - 1)
                corners = top, left, rng.randrange(top + 1, PLACES), rng.randrange(left + 1, PLACES)
                made += [NAMES.ids[LOCATION_NAMES[n]] for n in corners]
                made += [NAMES.ids[CODE_NAMES[rng.randrange(CODES)]] for _ in range(16 * masks)]
                made += NAMES.encode(f" {rng.choice(LABELS)}")
            for at in range(len(made)):
                assert made[at] in grammar.allowed(made[:at])
            assert 0 in grammar.allowed(made)


def test_what_a_grammar_cannot_do_is_said():
    with pytest.raises(ValueError, match="at least one thing"):
        ObjectGrammar(NAMES, [], [0], 99, False)
    with pytest.raises(ValueError, match="no <seg000>"):
        ObjectGrammar(Names(codes=False), ["cat"], [0], 99, True)
    with pytest.raises(ValueError, match="no room"):
        ObjectGrammar(NAMES, ["cat"], [0], 5, False)

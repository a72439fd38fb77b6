"""`<lora:...>` and other tags of prompts are followed or named."""

from itertools import pairwise

import pytest

from tests.linear import work_of
from triptych.text.tags import read_tags


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a cat <lora:style:0.8>, <lora: more > sun", "a cat ,  sun", ("style:0.8", "more:1")),
        ("plain <b> <:3 > x<1 <lora> lora:x>", "plain <b> <:3 > x<1 <lora> lora:x>", ()),
        ("<lyco:x:0.5>a", "a", ("x:0.5",)),
        ("<lora:x:0.5:0.7>a", "a", ("x:0.5:0.7",)),
        ("<lora:x:te=0.5:unet=0.7>a", "a", ("x:0.5:0.7",)),
        ("<lora:x:0.5:0.5>a<lora:y:unet=2>", "a", ("x:0.5", "y:1:2")),
        ("<lora:x:>a", "a", ("x:1",)),
        ("<lora:a<lora:b:1>:1>", "", ("b:1", "a:1")),  # what is left is no new tag
        ("<lora:a<b>:1>", "<lora:a<b>:1>", ()),
        ("<<<lora:a:1>", "<<", ("a:1",)),
    ],
)
def test_tags(prompt, text, loras):
    found = read_tags(prompt)
    assert found == (text, loras, ())
    assert read_tags(found.prompt) == (text, (), ())


@pytest.mark.parametrize(
    ("tag", "loras", "words"),
    [
        ("<lora:x:1:lbw=1,0,0>", ("x:1",), "<lora:x:1:lbw=1,0,0>: lbw=1,0,0 is ignored"),
        ("<lora:x:0.5:0.7:8:start=3>", ("x:0.5:0.7",), "8:start=3 is ignored"),
        ("<hypernet:x:1>", (), "<hypernet:x:1> is ignored: hypernetworks are not supported"),
        ("<segment:face>", (), "<segment:face> is read as words: there are no such tags"),
    ],
)
def test_what_is_not_followed_is_named(tag, loras, words):
    found = read_tags(f"a {tag}cat")
    assert found.loras == loras and len(found.notes) == 1
    assert words in found.notes[0]
    assert found.prompt == ("a <segment:face>cat" if "segment" in tag else "a cat")


@pytest.mark.parametrize("part", ["<", "<>", "<a:", "<lora:", "<lora:a>", "<<lora:a:1>:1>", "a"])
def test_reading_is_linear(part):
    counts = [work_of(read_tags, part * (size // len(part))) for size in (2**9, 2**10, 2**11)]
    assert all(after <= 2.2 * before for before, after in pairwise(counts)), counts

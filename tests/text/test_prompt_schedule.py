"""Prompts that change from step to step and composed prompts, as AUTOMATIC1111 documents them."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from tests.linear import work_of
from triptych.text.prompt_schedule import (
    is_composed,
    parse_schedule,
    split_composition,
)


def schedule(prompt, steps=10):
    """The last step of each text, and the text, as AUTOMATIC1111 writes them in its examples."""
    found = parse_schedule(prompt)
    texts = [found.at(step, steps) for step in range(1, steps + 1)]
    following = [*texts[1:], None]
    return [[i + 1, texts[i]] for i in range(steps) if texts[i] != following[i]]


DOCUMENTED = {
    "test": [[10, "test"]],
    "a [b:3]": [[3, "a "], [10, "a b"]],
    "a [b: 3]": [[3, "a "], [10, "a b"]],
    "a [[[b]]:2]": [[2, "a "], [10, "a [[b]]"]],
    "[(a:2):3]": [[3, ""], [10, "(a:2)"]],
    "a [b : c : 1] d": [[1, "a b  d"], [10, "a  c  d"]],
    "a[b:[c:d:2]:1]e": [[1, "abe"], [2, "ace"], [10, "ade"]],
    "a [unbalanced": [[10, "a [unbalanced"]],
    "a [b:.5] c": [[5, "a  c"], [10, "a b c"]],
    "((a][:b:c [d:3]": [[3, "((a][:b:c "], [10, "((a][:b:c d"]],
    "[a|(b:1.1)]": [[i + 1, ("a", "(b:1.1)")[i % 2]] for i in range(10)],
    "a [b:1.5] c": [[10, "a  c"]],
    "[a::0.3] b": [[3, "a b"], [10, " b"]],
    "[a:b:0]": [[10, "b"]],
    "[a:b:0.0]": [[10, "b"]],
    "[a:b:1.0]": [[10, "a"]],
    "[a:b:10]": [[10, "a"]],
    "[a:b:-1]": [[10, "b"]],
    "[a:b:1e999]": [[10, "a"]],
    "[[a|b]:[c:d:0.8]:0.2]": [[1, "a"], [2, "b"], [8, "c"], [10, "d"]],
    r"[a\:b:2]": [[2, ""], [10, r"a\:b"]],
    "a ([b:c:0.2]:1.3)": [[2, "a (b:1.3)"], [10, "a (c:1.3)"]],
}


@pytest.mark.parametrize("prompt", DOCUMENTED)
def test_the_documented_examples(prompt):
    assert schedule(prompt) == DOCUMENTED[prompt]


def test_options_take_turns_and_may_be_empty():
    found = parse_schedule("[fe|||]male")
    assert [found.at(step, 6) for step in range(1, 7)] == [
        "female", "male", "male", "male", "female", "male",
    ]  # fmt: skip


def test_the_wikis_example_of_a_hundred_steps():
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    start = "fantasy landscape with a "
    assert schedule(prompt, 100) == [
        [25, f"{start}mountain and an oak in foreground shoddy"],
        [50, f"{start}lake and an oak in foreground in background shoddy"],
        [60, f"{start}lake and an oak in foreground in background masterful"],
        [75, f"{start}lake and an oak in background masterful"],
        [100, f"{start}lake and a christmas tree in background masterful"],
    ]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a [cat:dog]", "'[cat:dog]' is no schedule"),
        ("[a:b:c:0.5]", "'[a:b:c:0.5]' is no schedule"),
        ("[a|b:0.5]", "'[a|b:0.5]' is no schedule"),
        ("a [b:c:0.5", "'[b:c:0.5' is no schedule"),
        ("[x (a:b:c) y:0.5]", "':0.5]' is no schedule"),
        ("[a (b:0.5]", "':0.5]' is no schedule"),
        ("a [b (c] d)", ""),
    ],
)
def test_what_is_no_schedule_is_text_with_a_note(prompt, words):
    found = parse_schedule(prompt)
    assert {found.at(step, 10) for step in (1, 10)} == {prompt}
    assert words in "".join(found.notes) and bool(found.notes) == bool(words)


def test_plain_text_is_around_a_broken_bracket_but_not_within_or_beside():
    found = parse_schedule("[x [a:b] [c:d:3] y:5] [e:f:0.5]")
    assert (found.at(1, 10), found.at(10, 10)) == ("[x [a:b] c y:5] e", "[x [a:b] d y:5] f")


@pytest.mark.parametrize("prompt", ["a | b [c:3]", "(a|b) [c:3]", "[a|b:1] [c:3]", "[c:3]\\"])
def test_a_stray_bar_makes_everything_text(prompt):
    found = parse_schedule(prompt)
    assert (found.at(1, 10), found.at(10, 10)) == (prompt, prompt)
    assert any("makes all schedules of a prompt plain text" in note for note in found.notes)


def test_plain_prompts_have_no_notes():
    for prompt in ("a cat", "a [cat], (dog:1.2) 12:30", r"\[a|b\] \(c\)", "a | b", "(((", ""):
        found = parse_schedule(prompt)
        assert found == ((prompt,) if prompt else (), ())
        assert found.unread(10) == ()


def test_what_no_step_reads_is_said():
    (note,) = parse_schedule("a [word:1.3] b").unread(20)
    assert "'word' is read in none of the 20 steps, because of 1.3" in note
    assert "(words:1.3)" in note
    assert "'b'" in parse_schedule("[a:b:30]").unread(20)[0]
    assert "'a'" in parse_schedule("[x|[a:b:0]]").unread(20)[0]
    assert parse_schedule("[a:b:30]").unread(31) == parse_schedule("[a:1.0]").unread(5)[1:] == ()
    (note,) = parse_schedule("a [::0.5]").unread(4)  # what is left of [<lora:x:1>::0.5]
    assert note == "'[::0.5]' changes nothing: a LoRA in it is used in all steps"
    many = parse_schedule("".join(f"[a{i}:b:0]" for i in range(9))).unread(5)
    assert len(many) == 5 and many[-1] == "and 5 more of this kind"
    four = parse_schedule("".join(f"[a{i}:b:0]" for i in range(4))).unread(5)
    assert len(four) == 4 and "more" not in four[-1]
    assert len(parse_schedule("[a:b:30]").unread(30)) == 1


def test_notes_show_sixty_characters():
    (note,) = parse_schedule("[a" + ":b" * 40 + "]").notes
    assert note.startswith("'[a" + ":b" * 29 + "' is no schedule")


def test_schedules_are_nested_at_most_32_times():
    deep = "[" * 32 + "a" + ":1]" * 32
    assert (parse_schedule(deep).at(1, 2), parse_schedule(deep).at(2, 2)) == ("", "a")
    with pytest.raises(ValueError, match="more than 32 times: remove some brackets"):
        parse_schedule(f"[{deep}|b]")
    brackets = "[" * 9000 + "a:1" + "]" * 9000  # weights may be deeper
    assert parse_schedule(brackets).at(2, 2) == "[" * 8999 + "a" + "]" * 8999


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a cat AND a dog", [("a cat", 1), ("a dog", 1)]),
        ("a :1.2 AND b AND a penguin :2.2", [("a", 1.2), ("b", 1), ("a penguin", 2.2)]),
        ("a AND b:-0.5 ", [("a", 1), ("b", -0.5)]),
        ("a (b:1.2) AND [c:d:.5] AND e: 3.", [("a (b:1.2)", 1), ("[c:d:.5]", 1), ("e", 3)]),
        ("AND a :0", [("", 1), ("a", 0)]),
        ("BRAND ANDES and", [("BRAND ANDES and", 1)]),
        ("at 9:30", [("at 9:30", 1)]),
        ("a: b :.x AND c", [("a: b :.x", 1), ("c", 1)]),
    ],
)  # fmt: skip
def test_compositions(prompt, parts):
    assert split_composition(prompt) == parts
    counted = [weight for _, weight in parts if weight]
    assert is_composed(prompt) == (counted != [1])


def test_a_weight_behind_a_single_prompt():
    assert split_composition("at 9:30", lone_weight=True) == [("at 9", 30)]
    assert split_composition("a cat ", lone_weight=True) == [("a cat ", 1)]
    assert split_composition("a cat:1", lone_weight=True) == [("a cat", 1)]
    assert not is_composed("a cat:1", lone_weight=True) and is_composed("a:2", lone_weight=True)


def test_weights_of_prompts_are_limited():
    for number in ("101", "-100.5", "9" * 400):
        with pytest.raises(ValueError, match=r"'b' has the weight .*, outside -100 to 100"):
            split_composition(f"a AND b :{number}")


NASTY = ["[a:b:", "[a:0.5]", "[a|", "[", "](", "[(", "|", "AND ", ": ", ":1 ", "\\", "[a:b]", " "]


@pytest.mark.parametrize("part", NASTY)
@pytest.mark.parametrize("work", [parse_schedule, split_composition])
def test_reading_is_linear(work, part):
    counts = [work_of(work, part * (size // len(part))) for size in (2**9, 2**10, 2**11)]
    assert all(after <= 2.2 * before for before, after in pairwise(counts)), counts


PIECES = ["a", "b ", *"[]()[]:|. \\<-", "0.5]", ":1", ":3]", "AND", "[a:b:2]", "[a|", "[:", "b]"]


def test_no_prompt_breaks_the_reader_and_no_words_are_lost():
    draw = random.Random(7)
    changed = 0
    for _ in range(600):
        prompt = "".join(draw.choices(PIECES, k=draw.randint(1, 24)))
        for text, _weight in split_composition(prompt, lone_weight=True):
            found = parse_schedule(text)
            read = [found.at(step, 4) for step in range(1, 5)]
            changed += len(set(read)) > 1
            if not any(mark in text for mark in ":|"):
                assert set(read) == {text}
            # nothing but what a schedule has is left out, and nothing is added
            assert all(not Counter(one) - Counter(text) for one in read)
            found.unread(4)
    assert changed > 20

"""Weighted prompts are read as AUTOMATIC1111 documents them, in linear time, and lose nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linear import at_most_seconds_of_processor, check_linear
from tests.text.test_tokenizer import CAPTIONS
from triptych.text.limits import MAX_PROMPT
from triptych.text.tokenizer import clip_tokenizer, train_tokenizer
from triptych.text.weighting import (
    Part,
    emphasise,
    emphasise_plainly,
    pad_windows,
    parse,
    prompt_windows,
    write_prompt,
)

TOKENIZER = train_tokenizer(CAPTIONS, 600, 77)
START, END = TOKENIZER.config.start, TOKENIZER.config.end


def close(parts, expected):
    assert [text for text, _ in parts] == [text for text, _ in expected]
    assert [w for _, w in parts] == pytest.approx([w for _, w in expected])


DOCUMENTED = {  # of AUTOMATIC1111's wiki and its own examples
    "normal text": [("normal text", 1)],
    "an (important) word": [("an ", 1), ("important", 1.1), (" word", 1)],
    "a ((word))": [("a ", 1), ("word", 1.21)],
    "a [word]": [("a ", 1), ("word", 1 / 1.1)],
    "a (word:1.5) (word:0.25)": [("a ", 1), ("word", 1.5), (" ", 1), ("word", 0.25)],
    r"a \(word\)": [("a (word)", 1)],
    r"\(literal\]": [("(literal]", 1)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "": [],
    "()[](())": [],
    "a (b [c) d]": [("a ", 1), ("b ", 1.1), ("c", 1), (" d", 1 / 1.1)],
    "[word:1.3]": [("word:1.3", 1 / 1.1)],
    "time 12:30 (noon)": [("time 12:30 ", 1), ("noon", 1.1)],
    "not a weight :1.3) here": [("not a weight :1.3) here", 1)],
    "(a:-0.5)(b:+2)(c:.5)(d: 3 )": [("a", -0.5), ("b", 2), ("c", 0.5), ("d", 3)],
    "(a:1.2.3)": [("a:1.2.3", 1.1)],
    r"a\b \\ \(": [("a\\b \\ (", 1)],
}


@pytest.mark.parametrize("prompt", DOCUMENTED)
def test_the_documented_grammar(prompt):
    (parts,) = parse(prompt)
    close(parts, DOCUMENTED[prompt])


def test_unbalanced_brackets_are_literal_or_weigh_as_elsewhere():
    prompt = "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))))."
    house = [("a ", 1), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1), (" a ", 1.1)]
    rest = [("hill", 0.5 * 1.1), (", sun, ", 1.1), ("sky", 1.1**4), (".", 1)]
    close(parse(prompt)[0], house + rest)
    # the last bracket taken away, one is never closed; the example of AUTOMATIC1111's own text
    broken = prompt.replace("))))", ")))")
    close(parse(broken, unclosed="weighs")[0], house + rest[:2] + [("sky", 1.1**4), (".", 1.1)])
    literal = parse(broken)[0]
    assert literal[0] == ("a (", 1) and literal[-1] == (".", 1)
    assert literal[1] == ("house", pytest.approx(1.3 * 1.1))
    close(parse("a) [b")[0], [("a) [b", 1)])
    close(parse("a) [b", unclosed="weighs")[0], [("a) ", 1), ("b", 1 / 1.1)])


def test_break_ends_a_block_inside_brackets_too():
    assert parse("a BREAK b") == [[("a ", 1)], [(" b", 1)]]
    assert parse("(a BREAK b:2)BREAK") == [[("a ", 2)], [(" b", 2)], []]
    assert len(parse("BREAKFAST OUTBREAK break")) == 1


def test_a_weight_out_of_range_is_said():
    with pytest.raises(ValueError, match=r"'word' the weight 101, outside -100 to 100"):
        parse("(word:101)")
    with pytest.raises(ValueError, match="remove some brackets"):
        parse("(" * 9000 + "x" + ")" * 9000)
    with pytest.raises(ValueError, match="weight"):
        parse(f"(x:{'9' * 5000})")


weights = st.floats(-100, 100).map(lambda w: w or 0.0)
texts = st.text(st.sampled_from("ab ,:.0123()[]\\éB\n<"), min_size=1)


@given(st.lists(st.lists(st.builds(Part, texts, weights | st.just(1.0)))))
@settings(max_examples=100)
def test_what_is_written_is_read_again(blocks):
    if not blocks:
        blocks = [[]]
    merged = []
    for number, block in enumerate(blocks):
        # the spaces around BREAK belong to no part, but reach the reader
        padded = (
            [Part(" ", 1.0)] * (number > 0) + block + [Part(" ", 1.0)] * (number + 1 < len(blocks))
        )
        merged.append([])
        for text, weight in padded:
            if merged[-1] and merged[-1][-1].weight == weight:
                text = merged[-1].pop().text + text
            merged[-1].append(Part(text, weight))
    assert parse(write_prompt(blocks)) == merged


@given(st.text(st.sampled_from("ab()[]:\\1.2 BREAK,<>|")), st.sampled_from(["literal", "weighs"]))
@settings(max_examples=100)
def test_no_prompt_breaks_the_parser_and_nothing_but_brackets_is_lost(prompt, unclosed):
    try:
        blocks = parse(prompt, unclosed=unclosed)
    except ValueError as error:
        assert "the weight" in str(error)
        return
    read = "".join(part.text for block in blocks for part in block)
    letters = [c for c in prompt.replace("BREAK", "") if c in "ab ,<>|"]
    kept = [c for c in read if c in "ab ,<>|"]
    assert sorted(kept) == sorted(letters) or ":" in prompt  # `(a : 1 )` has spaces in its weight


NASTY = {
    "words": "a red cat, ",
    "open": "[(",
    "open and close": "()",
    "weights": "(a:1.1)",
    "digits": ":1",
    "colons": ": ",
    "breaks": "BREAK ",
    "schedules": "[a:b:",
}


@pytest.mark.parametrize("name", NASTY)
def test_parsing_is_linear(name):
    check_linear(parse, NASTY[name])


def test_one_bracket_around_a_long_number_is_linear():
    with at_most_seconds_of_processor(30):  # with backtracking: hours
        parse("(a:" + "1" * 1_000_000)


def test_a_prompt_beyond_the_limit_is_refused():
    assert len(prompt_windows("a" * MAX_PROMPT, TOKENIZER).tokens) > 1
    with pytest.raises(ValueError, match="1,000,000 characters, more than the limit of 32,000"):
        prompt_windows("a" * 1_000_000, TOKENIZER)


def test_one_window_is_what_the_tokenizer_encodes():
    for text in [*CAPTIONS[:4], "", "a" * 30]:
        windows = prompt_windows(text, TOKENIZER)
        assert torch.equal(windows.tokens, TOKENIZER.encode([text]).tokens)
        assert bool((windows.weights == 1).all()) and windows.notes == ()


def test_weights_stand_at_their_tokens():
    windows = prompt_windows("a (red:1.5) circle", TOKENIZER)
    a, red, circle = (TOKENIZER.pieces(word) for word in ("a", "red", "circle"))
    expected = [1.0] + [1.0] * len(a) + [1.5] * len(red) + [1.0] * (76 - len(a) - len(red))
    assert windows.tokens[0, 1 : 1 + len(a + red + circle)].tolist() == a + red + circle
    assert windows.weights.tolist() == [pytest.approx(expected)]


def inner(windows):
    """The tokens of each window without start, end and padding."""
    return [row[1 : row.index(END)] for row in windows.tokens.tolist()]


WORD = TOKENIZER.pieces("red")
COMMA = TOKENIZER.pieces(",")


def test_the_words_of_the_tests_are_one_token_each():
    assert len(WORD) == len(COMMA) == 1


def test_a_full_window_ends_at_a_near_comma():
    near = prompt_windows("red " * 60 + ", " + "red " * 40, TOKENIZER)
    assert [len(row) for row in inner(near)] == [61, 40]
    assert inner(near)[0][-1:] == COMMA
    # the 20th token from the edge is the last that is looked at
    edge = prompt_windows("red " * 55 + ", " + "red " * 40, TOKENIZER)
    assert [len(row) for row in inner(edge)] == [56, 40]
    far = prompt_windows("red " * 54 + ", " + "red " * 40, TOKENIZER)
    assert [len(row) for row in inner(far)] == [75, 20]
    never = prompt_windows("red " * 60 + ", " + "red " * 40, TOKENIZER, backtrack=0)
    assert [len(row) for row in inner(never)] == [75, 26]
    # a comma that would begin the next window begins it
    begins = prompt_windows("red " * 60 + ", " + "red " * 14 + ", red", TOKENIZER)
    assert [len(row) for row in inner(begins)] == [75, 2]
    exactly = prompt_windows("red " * 75, TOKENIZER)
    assert [len(row) for row in inner(exactly)] == [75] and exactly.notes == ()


@given(st.lists(st.sampled_from(["red", ",", "a", "(blue:1.2)", "BREAK"]), max_size=400))
@settings(max_examples=100, deadline=None)
def test_no_token_is_lost_and_every_window_is_whole(words):
    windows = prompt_windows(" ".join(words), TOKENIZER)
    assert windows.tokens.shape == windows.weights.shape == (len(windows.tokens), 77)
    assert bool((windows.tokens[:, 0] == START).all())
    assert bool((windows.tokens[:, -1] == END).all())  # which also pads in this vocabulary
    plain = {"(blue:1.2)": "blue"}
    expected = [t for w in words if w != "BREAK" for t in TOKENIZER.pieces(plain.get(w, w))]
    assert [token for row in inner(windows) for token in row] == expected
    heavy = (windows.weights == torch.tensor(1.2)).sum().item()
    assert heavy == words.count("(blue:1.2)") * len(TOKENIZER.pieces("blue"))


def test_break_fills_the_window_and_empty_ones_are_kept():
    windows = prompt_windows("red BREAK red", TOKENIZER)
    assert inner(windows) == [WORD, WORD]
    assert (
        "2 tokens and is split into 2 windows of 75: window 2 begins with 'red'" in windows.notes[0]
    )
    assert inner(prompt_windows("red BREAK BREAK red", TOKENIZER)) == [WORD, [], WORD]
    assert inner(prompt_windows("red BREAK", TOKENIZER)) == [WORD]
    assert inner(prompt_windows("BREAK red", TOKENIZER)) == [[], WORD]
    assert inner(prompt_windows("BREAK", TOKENIZER)) == [[]]


def test_windows_of_two_prompts_are_made_as_many():
    short, long = prompt_windows("red", TOKENIZER), prompt_windows("red " * 200, TOKENIZER)
    padded = pad_windows(short, len(long.tokens), TOKENIZER)
    assert inner(padded) == [WORD, [], []]
    assert torch.equal(padded.tokens[1:2], prompt_windows("", TOKENIZER).tokens)
    assert padded.weights.shape == (3, 77)
    assert torch.equal(pad_windows(short, 1, TOKENIZER).tokens, short.tokens)
    with pytest.raises(ValueError, match="has 3 windows, more than 1"):
        pad_windows(long, 1, TOKENIZER)


def test_emphasis_keeps_the_mean_of_each_window():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 77, 8, generator=generator) + 0.3
    weights = torch.rand(2, 77, generator=generator) + 0.5
    result = emphasise(hidden, weights)
    for window in range(2):  # written out, in float64
        states = hidden[window].double()
        by_hand = states * weights[window].double()[:, None]
        by_hand *= states.mean() / by_hand.mean()
        torch.testing.assert_close(result[window].double(), by_hand, atol=1e-5, rtol=1e-5)
    ones = torch.ones(2, 77)
    assert torch.equal(emphasise(hidden, ones), hidden)
    assert torch.equal(emphasise_plainly(hidden, ones), hidden)
    assert torch.equal(emphasise_plainly(hidden, weights), hidden * weights[..., None])
    assert bool((emphasise(hidden, 0 * ones) == 0).all())
    assert emphasise(hidden.bfloat16(), weights).dtype == torch.bfloat16


def test_clips_own_vocabulary(real_data):
    """Its comma is one token, and padding is what the tower was trained with."""
    tokenizer = clip_tokenizer(real_data / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz")
    assert tokenizer.pieces(",") == [267]
    windows = prompt_windows("cat, " * 50, tokenizer)
    assert (windows.tokens[0, :3].tolist(), len(windows.tokens)) == ([49406, 2368, 267], 2)
    # 37 cats and commas and one cat more are 75 tokens; its comma comes next and begins a window
    assert windows.tokens[1, :2].tolist() == [49406, 267]
    assert windows.tokens[1, 27:29].tolist() == [0, 0]

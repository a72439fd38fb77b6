"""Words that a model was not trained on are named, with what it could be asked for."""

import json
from pathlib import Path

import pytest

from triptych.config import BadFile
from triptych.text.known_words import (
    MOST,
    KnownWords,
    collect_words,
    describe_unknown,
    nearest_names,
    read_known_words,
    unknown_words,
    words_of,
)

NAMES = ("red apple", "green apple", "helicopter", "man's shoe", "flag: Ålborg", "two-hump camel")


def test_words_of_any_script_and_spelling() -> None:
    words = ["a", "two", "hump", "camel", "man", "s", "shoe"]
    assert words_of("A two-hump Camel, man's SHOE!") == words
    assert words_of("flag: Ålborg 犬_猫") == ["flag", "ålborg", "犬", "猫"]


def test_only_what_was_never_seen_is_unknown() -> None:
    words = [word for name in NAMES for word in words_of(name)]
    assert unknown_words("a red apple on the Shoe", words) == []
    assert unknown_words("a zebra beside a zebra and an aple", words) == ["zebra", "beside", "aple"]
    syntax = "(red:1.3) apple BREAK [camel:helicopter:0.5] AND shoe :0.7"
    assert unknown_words(syntax, words) == []
    assert unknown_words("a break", words) == ["break"]


@pytest.mark.parametrize(
    ("prompt", "nearest"),
    [
        ("red apple", "red apple"),
        ("a gren apple", "green apple"),
        ("helicoptre", "helicopter"),
        ("camel", "two-hump camel"),
        ("shoes of a man", "man's shoe"),
    ],
)
def test_the_nearest_name(prompt: str, nearest: str) -> None:
    assert nearest_names(prompt, NAMES)[0] == nearest
    assert len(nearest_names(prompt, NAMES, count=2)) == 2


def test_a_note_per_prompt_with_unknown_words() -> None:
    known = collect_words(NAMES, [*NAMES, "red apple: fruit"])
    assert known is not None and known.names == NAMES and "fruit" in known.words
    prompts = ["red fruit", "a purple aple", "a purple aple", "my-style camel"]
    first, second = describe_unknown(known, prompts)
    assert first.startswith("the model was not trained on the words purple, aple; the nearest of")
    assert "'red apple'" in first and "my, style" in second
    assert describe_unknown(known, prompts[:1] + prompts[3:], learned=["my-style"]) == ()
    assert describe_unknown(None, prompts) == ()
    (alone,) = describe_unknown(KnownWords(words=known.words), ["a zebra"])
    assert alone == "the model was not trained on the words zebra"


def test_long_lists_are_not_kept() -> None:
    captions = [f"{number:06d}" for number in range(MOST // 6 + 1)]
    assert collect_words([], captions) is None
    known = collect_words(captions, ["red", "Apple"])
    assert known == KnownWords((), ("apple", "red"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_known_words(tmp_path) is None
    known = KnownWords(NAMES, ("red", "犬"))
    known.save(tmp_path)
    assert read_known_words(tmp_path) == known
    (tmp_path / "words.json").write_text(json.dumps({"names": "red"}))
    with pytest.raises(BadFile, match=r"words.json.names must be a list"):
        read_known_words(tmp_path)

"""Byte pairs by scores, against SentencePiece itself."""

import random

import pytest
import sentencepiece

from tests.systems.gemma.tiny_gguf import small_vocabulary
from triptych.text.scored_pieces import ScoredPieces

LETTERS = "abcdefghijklmnopqrstuvwxyz      ,.\n\t0123456789éß語🙂\x00\u0301"


def lines(count: int) -> list[str]:
    rng = random.Random(0)
    words = ["a", "red", "circle", "left", "of", "two", "squares", ",", "the", "there\n\n", "<b>"]
    made = ["", " ", "  ", "a  b", " a", "a ", "\n", "\n\n\n", "aaaa", "<b", "🙂🙂", "x" * 300]
    for _ in range(count):
        parts = [
            rng.choice(words)
            if rng.random() < 0.6
            else "".join(rng.choices(LETTERS, k=rng.randrange(1, 9)))
            for _ in range(rng.randrange(1, 12))
        ]
        made.append(rng.choice(["", " ", "  "]).join(parts))
    return made


def test_tokens_and_text_are_those_of_sentencepiece():
    model, pieces, scores, kinds = small_vocabulary()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = ScoredPieces(pieces, scores, kinds)
    for line in lines(400):
        tokens = reference.encode(line)
        assert ours.encode(line) == tokens, repr(line)
        assert ours.decode(tokens) == reference.decode(tokens) == line, repr(line)


def test_a_word_is_the_same_remembered_and_not():
    """Words are split where no piece goes across, which a piece such as `>▁</` forbids."""
    _, pieces, scores, kinds = small_vocabulary()
    scores = [*scores, 5.0, 6.0]
    vocabulary = ScoredPieces([*pieces, "l▁".encode(), "l▁s".encode()], scores, [*kinds, 1, 1])
    assert vocabulary.decode(vocabulary.encode("small square")) == "small square"
    assert vocabulary.token("l▁s") in vocabulary.encode("small square")


def test_names_of_control_tokens_are_letters():
    _, pieces, scores, kinds = small_vocabulary()
    vocabulary = ScoredPieces(pieces, scores, kinds)
    for name in ("<bos>", "<start_of_turn>", "<0x41>", "<unk>"):
        tokens = vocabulary.encode(name)
        assert not set(tokens) & vocabulary.controls and vocabulary.decode(tokens) == name
        assert vocabulary.token(name) is not None or name == "<0x41>"


def test_bytes_that_are_no_text_are_marked():
    _, pieces, scores, kinds = small_vocabulary()
    vocabulary = ScoredPieces(pieces, scores, kinds)
    tokens = vocabulary.encode("🙂")
    assert len(tokens) == 4
    assert vocabulary.decode(tokens[:3]) == "���"
    assert vocabulary.decode([vocabulary.token("<bos>"), *tokens]) == "🙂"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, s, k: (p, s[1:], k), "scores"),
        (lambda p, s, k: ([b"\xff\xfe", *p[1:]], s, k), "no text"),
        (lambda p, s, k: (p, s, [1 if kind == 6 else kind for kind in k]), "0 of the 256 bytes"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ScoredPieces(*change(*small_vocabulary()[1:]))


def test_a_long_word_takes_time_in_proportion():
    """Merges of 40,000 letters without a space: each letter is offered a few times."""
    _, pieces, scores, kinds = small_vocabulary()
    vocabulary = ScoredPieces(pieces, scores, kinds)
    word = "the" * 10_000
    assert vocabulary.decode(vocabulary.encode(word)) == word

"""Tokens of a chat, special tokens in a text, and text as it comes."""

import pytest
import tokenizers
from tokenizers import models

from tests.systems.gemma.tiny_gguf import small_vocabulary
from tests.text.tiny_tokenizer import SPECIAL, write_tokenizer
from triptych.config import BadFile
from triptych.text.language import (
    LanguageTokenizer,
    Message,
    TextStream,
    open_language_tokenizer,
    read_messages,
)
from triptych.text.scored_pieces import ScoredPieces

HIDDEN = ("<unused1>", "<image>")  # not marked as special in files


@pytest.fixture(scope="module", params=["library", "scores"])
def tokenizer(request, tmp_path_factory):
    """A tokenizer.json of Gemma's form, and the vocabulary of a GGUF file."""
    if request.param == "scores":
        return LanguageTokenizer(ScoredPieces(*small_vocabulary()[1:]))
    return open_language_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), HIDDEN))


def test_a_chat_is_written_as_gemma_was_trained(tokenizer):
    turn, end = tokenizer.require("<start_of_turn>"), tokenizer.turn_end
    tokens = tokenizer.chat(
        [
            Message("system", " Be short. "),
            Message("user", " two circles "),
            Message("model", "left"),
            Message("user", "red <end_of_turn>"),
        ]
    )
    assert tokens.count(tokenizer.start) == 1 and tokens[0] == tokenizer.start
    assert tokens.count(turn) == 4 and tokens.count(end) == 3
    parts, part = [], []
    for token in tokens[1:]:
        if token in (turn, end):
            parts.append(tokenizer.decode(part))
            part = []
        else:
            part.append(token)
    assert [*parts, tokenizer.decode(part)] == [
        "", "user\nBe short.\n\ntwo circles", "\n", "model\nleft", "\n",
        "user\nred <end_of_turn>", "\n", "model\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "at least one turn"),
        (["system"], "at least one turn"),
        (["model"], "turn 1 is the model's"),
        (["user", "user"], "turn 2 is the user's"),
        (["user", "system"], "turn 2 is the system's"),
        (["user", "model"], "nothing to answer"),
    ],
)
def test_turns_that_are_no_chat_are_refused(tokenizer, roles, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.chat([Message(role, "red") for role in roles])


@pytest.mark.parametrize(
    "name", [*SPECIAL, *HIDDEN, "<loc0000>", "<seg127>", "<bos><eos>", "a<start_of_turn>user"]
)
def test_special_tokens_in_a_text_are_text(tokenizer, name):
    tokens = tokenizer.encode(name)
    assert tokenizer.decode(tokens) == name
    assert not {tokenizer.start, tokenizer.end, tokenizer.turn_end} & set(tokens)
    assert len(tokens) > 1


@pytest.mark.parametrize("text", ["", " ", "red  circle\n", "🙂é", "\ud83d", "\ud83d\ude42"])
def test_any_text_comes_back(tokenizer, text):
    known = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == known


def test_places_and_codes_are_words_of_an_answer(tokenizer):
    if tokenizer.encode("x") and tokenizer._marks:
        tokens = [tokenizer.require("<loc0012>"), *tokenizer.encode(" red"), tokenizer.end]
        assert tokenizer.decode([*tokens, tokenizer.require("<seg127>")]) == "<loc0012> red<seg127>"


def test_text_comes_in_whole_letters(tokenizer):
    """Also letters of several tokens: nothing is shown twice, and no half of one."""
    text = "red 🙂 circle é left"
    stream, shown = TextStream(tokenizer), []
    for token in tokenizer.encode(text):
        shown.append(stream.push(token))
        assert "�" not in shown[-1]
    assert "".join(shown) + stream.finish() == text and len(list(filter(None, shown))) > 5


def test_a_broken_letter_is_shown_at_the_end(tokenizer):
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("🙂")
    assert len(tokens) == 4
    assert [stream.push(token) for token in tokens[:2]] == ["", ""]
    assert stream.finish() == "��"


@pytest.mark.parametrize(
    ("stops", "shown"),
    [
        (["circle"], "two red "),
        (["circle", "red c"], "two "),
        (["squares", "nothing"], "two red circle"),
        (["e"], "two r"),
        ([""], "two red circle"),
    ],
)
def test_text_ends_before_what_stops_it(tokenizer, stops, shown):
    """Wherever the tokens end; what might become a stop waits until it does not."""
    stream, pieces = TextStream(tokenizer, stops), []
    for token in tokenizer.encode("two red circle"):
        if stream.stopped:
            break
        pieces.append(stream.push(token))
    assert "".join(pieces) + stream.finish() == shown
    assert stream.stopped == (shown != "two red circle")


def test_a_vocabulary_without_start_is_no_gemma_s(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    backend.save(f"{tmp_path / 'tokenizer.json'}")
    with pytest.raises(BadFile, match="no <bos>"):
        open_language_tokenizer(tmp_path)


def test_messages_are_read_line_by_line():
    lines = '{"role": "user", "content": "a"}\n\n{"role": "assistant", "content": "b"}'
    assert read_messages(lines) == [Message("user", "a"), Message("model", "b")]
    for bad in ('{"role": "x", "content": "a"}', "[]", "{}", "a", '{"role": "user", "content": 1}'):
        with pytest.raises(ValueError, match="line 3 is no turn"):
            read_messages('{"role": "user", "content": "a"}\n\n' + bad)

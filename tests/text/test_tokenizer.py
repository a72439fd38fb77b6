"""Tokens are those of transformers and open_clip; own vocabularies are what their captions say."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import tokenizers
import torch

from tests.text.nasty import PARTS, nasty
from triptych.fields import from_json, to_json
from triptych.text.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    canonical,
    clip_tokenizer,
    open_tokenizer,
    train_tokenizer,
)

CAPTIONS = [
    "a red circle above a blue square on a white ground",
    "two green stars beside a ring",
    "A large red ring, striped",
    "a small heart on black",
] * 5


@pytest.fixture
def published(real_data, tmp_path):
    """CLIP's folder as transformers has it."""
    source = real_data / "tokenizers" / "clip"
    packed = (source / "hf_tokenizer.json.gz").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(packed))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / f"hf_{name}", tmp_path / name)
    return tmp_path


@pytest.fixture
def openai(real_data):
    return real_data / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz"


@cache
def tokenizer_of(openai: Path) -> Tokenizer:
    """Read once: it takes a good part of a second."""
    return clip_tokenizer(openai)


@pytest.fixture
def open_clip():
    if not hasattr(torch.ops.torchvision, "nms"):  # its compiled operators need a GPU build
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        open_clip.library = library  # it unregisters when it goes
    return pytest.importorskip("open_clip")


def test_a_thousand_nasty_strings_as_transformers(published):
    from transformers import CLIPTokenizerFast

    texts = nasty()
    peer = CLIPTokenizerFast.from_pretrained(published)
    expected = peer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    encoded = clip_tokenizer(published).encode(texts)
    assert torch.equal(encoded.tokens, expected.input_ids)
    assert torch.equal(encoded.lengths, expected.attention_mask.sum(1))


def test_openai_file_and_vocab_with_merges_are_the_same_tokenizer(published, openai, tmp_path):
    texts, whole = nasty(), clip_tokenizer(published, pad=0)
    expected = whole.encode(texts).tokens
    assert torch.equal(tokenizer_of(openai).encode(texts).tokens, expected)
    model = json.loads((published / "tokenizer.json").read_text())["model"]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (pairs / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert torch.equal(clip_tokenizer(pairs).encode(texts).tokens, expected)
    assert whole.vocabulary == tokenizer_of(openai).vocabulary == 49_408
    assert (whole.config.start, whole.config.end) == (49_406, 49_407)


def test_as_open_clip_where_it_does_not_repair_texts_first(openai, open_clip):
    """open_clip repairs encodings and HTML entities (ftfy), has its own names for the special
    tokens, lower-cases a final sigma by its place in the word, and counts control characters among
    the spaces. There we follow transformers.
    """
    repaired = open_clip.tokenizer.basic_clean

    def agreed(text):
        plain = unicodedata.normalize("NFC", text).strip()
        special = any(name in text.lower() for name in ("text|>", "_of_text>"))
        odd = "Σ" in text or any(unicodedata.category(c) == "Cc" for c in text)
        return unicodedata.normalize("NFC", repaired(text)) == plain and not special and not odd

    texts = [text for text in nasty() if agreed(text)]
    assert len(texts) > 250
    ours, theirs = tokenizer_of(openai), open_clip.SimpleTokenizer()
    assert torch.equal(ours.encode(texts).tokens, theirs(texts))
    for text in ("&amp;", "sâ€™ mojibake", "“quoted”", "ΟΔΟΣ", "<start_of_text>"):
        assert not torch.equal(ours.encode([text]).tokens, theirs([text])), text


def test_known_tokens(openai):
    """The example of OpenAI's README."""
    tokens = tokenizer_of(openai).encode(["a diagram"], full=False).tokens
    assert tokens.tolist() == [[49406, 320, 22697, 49407]]


def test_what_is_cut_is_said_and_the_end_token_stays(openai):
    tokenizer = clip_tokenizer(openai, length=6)
    texts = ["one two three four", "One  two three FOUR five\n Six!", "", "a " * 10_000]
    encoded = tokenizer.encode(texts)
    assert encoded.tokens.shape == (4, 6)
    assert encoded.lengths.tolist() == [6, 6, 2, 6]
    assert encoded.tokens[[0, 1, 3], -1].tolist() == [49407] * 3
    assert encoded.cut[:3] == ("", "five\n Six!", "")
    assert encoded.cut[3].split() == ["a"] * 9_996
    assert torch.equal(encoded.tokens[0], encoded.tokens[1])


def test_padding_is_data_and_may_stop_at_the_longest(openai, published):
    texts = ["a photo of a cat", "cat", ""]
    for pad in (0, 49_407):
        tokenizer = clip_tokenizer(openai, pad=pad)
        encoded = tokenizer.encode(texts)
        for row, length in zip(encoded.tokens, encoded.lengths, strict=True):
            assert set(row[length:].tolist()) == {pad}
        short = tokenizer.encode(texts, full=False)
        assert short.tokens.shape == (3, 7)
        assert torch.equal(short.tokens, encoded.tokens[:, :7])
    assert clip_tokenizer(published).config.pad == 49_407  # its folder says so
    nothing = tokenizer_of(openai).encode([])
    assert nothing.tokens.shape == (0, 77) and nothing.tokens.dtype == torch.int64


def test_decoding_gives_the_words_back(openai):
    tokenizer = tokenizer_of(openai)
    texts = ["a photo of a cat, and 3 dogs!", "日本語 🦊", ""]
    decoded = tokenizer.decode(tokenizer.encode(texts).tokens)
    assert [t.replace(" ", "") for t in decoded] == [t.replace(" ", "") for t in texts]
    assert decoded[0] == "a photo of a cat , and 3 dogs !"


def test_half_a_surrogate_pair_is_no_crash(openai):
    tokenizer = tokenizer_of(openai)
    broken, replaced = tokenizer.encode(["fox \ud83e", "fox \ufffd"]).tokens
    assert torch.equal(broken, replaced)


def test_canonical_text_as_open_clip(open_clip):
    for text in nasty():
        assert canonical(text) == open_clip.tokenizer.canonicalize_text(text), repr(text)
    assert canonical(" Tennis_Ball,  (new)! ") == "tennis ball new"


def test_own_vocabulary_has_clips_form(tmp_path):
    from transformers import CLIPTokenizerFast, PreTrainedTokenizerFast

    tokenizer = train_tokenizer(CAPTIONS, vocabulary=600, length=24)
    assert tokenizer.vocabulary <= 600
    assert tokenizer.config.end == tokenizer.vocabulary - 1
    assert tokenizer.config.start == tokenizer.vocabulary - 2
    encoded = tokenizer.encode(CAPTIONS[:4])
    # seen twice and with room for all merges, every word is one token
    words = [len(c.replace(",", " ,").split()) for c in CAPTIONS[:4]]
    assert encoded.lengths.tolist() == [count + 2 for count in words]
    tokenizer.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["tokenizer.json"]
    again = open_tokenizer(tmp_path, from_json(TokenizerConfig, to_json(tokenizer.config)))
    texts = [t for t in nasty(300) if len(t) < 500]
    tokens = tokenizer.encode(texts).tokens
    assert torch.equal(again.encode(texts).tokens, tokens)
    assert torch.equal(
        clip_tokenizer(tmp_path, 24, pad=tokenizer.config.end).encode(texts).tokens, tokens
    )
    for kind in (PreTrainedTokenizerFast, CLIPTokenizerFast):
        peer = kind.from_pretrained(tmp_path, pad_token="<|endoftext|>")
        ids = peer(texts, padding="max_length", max_length=24, truncation=True).input_ids
        assert ids == tokens.tolist(), kind


def test_every_text_has_tokens_in_an_own_vocabulary():
    tokenizer = train_tokenizer(["a"], vocabulary=514, length=4096)
    assert tokenizer.vocabulary == 514
    for text in PARTS:
        encoded = tokenizer.encode([text])
        decoded = tokenizer.decode(encoded.tokens)[0]
        plain = unicodedata.normalize("NFC", text)
        if not any(
            name in text.lower() for name in ("text|>", "</w>", "\u03c3", "\u03c2", "i\u0307")
        ):
            expected = "".join("".join(c.lower() for c in plain).split())
            assert "".join(decoded.split()) == expected, repr(text)


def test_training_is_the_same_every_time():
    """Ties between pairs are common in few captions; nothing may hang on a hash, whose seed is
    another one for every table and process.
    """

    def digest():
        tokenizer = train_tokenizer(CAPTIONS + PARTS, 700, 24)
        return tokenizer.encode(nasty(200)).tokens.tolist()

    first = digest()
    assert digest() == first
    code = """
from tests.text.test_tokenizer import CAPTIONS, PARTS, nasty, train_tokenizer
print(train_tokenizer(CAPTIONS + PARTS, 700, 24).encode(nasty(200)).tokens.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == first


def test_lower_case_where_the_vocabulary_has_capitals(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"cat": 0, "Cat": 1, "?": 2}, unk_token="?")
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    kept = open_tokenizer(tmp_path, TokenizerConfig(8, 2))
    assert kept.encode(["Cat"], full=False).tokens.tolist() == [[1]]
    lowered = open_tokenizer(tmp_path, TokenizerConfig(8, 2, lower=True))
    assert lowered.encode(["CAT"], full=False).tokens.tolist() == [[0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a tokenizer"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "cannot be read as a tokenizer"),
        (b'{"version": "1.0"', "cannot be read as a tokenizer"),
        (b"\x1f\x8b broken", "cannot be read as a tokenizer"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        clip_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_wrong_settings_are_refused(tmp_path, openai):
    with pytest.raises(ValueError, match="has no tokenizer file"):
        clip_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="at least 514"):
        train_tokenizer(CAPTIONS, 513, 24)
    with pytest.raises(ValueError, match="no room"):
        TokenizerConfig(length=2, start=0, end=1)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        open_tokenizer(openai, TokenizerConfig(start=49_407, end=49_408))
    with pytest.raises(ValueError, match="not the string"):
        tokenizer_of(openai).encode("a cat")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0}, unk_token="cat"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="not a CLIP tokenizer"):
        clip_tokenizer(tmp_path)
    assert Tokenizer(backend, TokenizerConfig(8, 0)).vocabulary == 1

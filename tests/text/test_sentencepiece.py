"""SentencePiece files, read without its package, split text as its package does."""

import io
import random
import unicodedata

import pytest
import torch

from tests.text.nasty import PARTS, nasty
from triptych.text.sentencepiece import read_vocabulary, sentencepiece_tokenizer
from triptych.text.tokenizer import siglip_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
GEMMA = {
    "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True, "split_digits": True,
    "add_dummy_prefix": False, "remove_extra_whitespaces": False, "character_coverage": 0.98,
    "normalization_rule_name": "identity",
    "user_defined_symbols": ["<mask>", "<start_of_turn>", "\n\n"],
}  # fmt: skip
MODELS = {
    "unigram": {"model_type": "unigram", "vocab_size": 400, "hard_vocab_limit": False, **T5},
    "bytes": {
        "model_type": "unigram", "vocab_size": 400, "hard_vocab_limit": False, **T5,
        "byte_fallback": True, "character_coverage": 0.98,
    },
    "pairs": {"model_type": "bpe", "vocab_size": 500, **T5},
    "gemma": {"model_type": "bpe", "vocab_size": 640, **GEMMA},
}  # fmt: skip
SENTENCE = (
    "a the red green blue circle square star ring heart large small on white black background two "
    "three four dogs cat photo of playing running in park with ball water"
)


def trained(**settings):
    draw, words = random.Random(0), SENTENCE.split()
    sentences = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(2000)]
    sentences += [p for p in PARTS if len(p) < 40 and not set(p) & {"\x00", "\n"}] * 3
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=file,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def models():
    return {name: trained(**settings) for name, settings in MODELS.items()}


def without_names(texts, data):
    """Texts in which no control or byte piece is written out: those become the token here."""
    names = [piece.text for piece in read_vocabulary(data).pieces if piece.kind in (2, 3, 6)]
    return [text for text in texts if not any(name in text for name in names)]


@pytest.mark.parametrize("name", MODELS)
def test_a_thousand_nasty_strings(models, name):
    data = models[name]
    peer = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = sentencepiece_tokenizer(data)
    texts = without_names(nasty(1200), data)
    assert len(texts) >= 900
    scores = {piece.text: piece.score for piece in read_vocabulary(data).pieces}
    for text in texts:
        expected = peer.encode(text, out_type=str)
        pieces = ours.encode(text, add_special_tokens=False).tokens
        if peer.encode(text) == ours.encode(text, add_special_tokens=False).ids:
            continue
        # Never with byte pairs. Otherwise two equally likely splits, or marks in one grapheme.
        assert name in ("unigram", "bytes"), repr(text)
        likelihoods = [sum(scores.get(p, 0.0) for p in split) for split in (expected, pieces)]
        tie = len(expected) == len(pieces) and abs(likelihoods[0] - likelihoods[1]) < 1e-3
        assert tie or any(unicodedata.category(c).startswith("M") for c in text), repr(text)


@pytest.mark.parametrize("name", MODELS)
def test_decoding(models, name):
    peer = sentencepiece.SentencePieceProcessor(model_proto=models[name])
    ours = sentencepiece_tokenizer(models[name])
    for text in ("a red circle", "two dogs, running!", "", "3.14159 cats"):
        assert ours.decode(peer.encode(text)) == peer.decode(peer.encode(text))


@pytest.mark.parametrize("name", ["siglip", "t5", "gemma", "gemma3"])
def test_small_published_files(real_data, name):
    """Vocabularies of whole words; runs of unknown words are one token there and several here."""
    path = real_data / "tokenizers" / "sentencepiece_test" / f"{name}_test_vocab.spm"
    data = path.read_bytes()
    peer = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = sentencepiece_tokenizer(data)
    known = ["the quick brown fox is round", "The earth  is round ", "", "the earth, round the fox"]
    for text in known + without_names(nasty(), data):
        if any(unicodedata.category(c).startswith("M") for c in text) or "[MASK]" in text:
            continue
        ids = ours.encode(text, add_special_tokens=False).ids
        merged = [i for k, i in enumerate(ids) if i != peer.unk_id() or k == 0 or ids[k - 1] != i]
        assert merged == peer.encode(text), repr(text)
    for number in range(peer.vocab_size()):
        assert ours.token_to_id(peer.id_to_piece(number)) == number


def test_siglip_as_transformers(models, tmp_path):
    """SigLIP 1: cleaned, ended, padded with the end token to 64."""
    from transformers import SiglipTokenizer

    path = tmp_path / "spiece.model"
    path.write_bytes(models["unigram"])
    peer = SiglipTokenizer(str(path))
    ours = siglip_tokenizer(tmp_path, canonical=True)
    assert (ours.config.end, ours.config.pad, ours.config.length) == (1, 1, 64)
    # transformers deletes underscores (the authors make them spaces), lowers before it
    # removes punctuation (which shows in a final sigma), and knows written-out tokens
    odd = ("_", "▁", "VIII", "Ⅷ", "\u03a3", "</s>", "<unk>", "<pad>", "\U0010ffff")
    texts = [t for t in nasty(1200) if not any(o in t for o in odd)]
    texts = [t for t in texts if not any(unicodedata.category(c).startswith("M") for c in t)]
    assert len(texts) > 500
    expected = peer(
        texts, padding="max_length", max_length=64, truncation=True, return_tensors="pt"
    )
    tokens = ours.encode(texts).tokens
    wrong = [texts[i] for i in (tokens != expected.input_ids).any(1).nonzero()[:, 0]]
    assert wrong == []
    assert torch.equal(ours.encode(["Red, Circle!"]).tokens, ours.encode(["red circle"]).tokens)


def test_siglip2_as_transformers(models, tmp_path):
    """SigLIP 2: Gemma's vocabulary, lower case only, ended by <eos>, padded by <pad>."""
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    data = trained(**MODELS["gemma"] | {
        "eos_piece": "<eos>", "bos_piece": "<bos>", "user_defined_symbols": ["<mask>"],
    })  # fmt: skip
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    ours = siglip_tokenizer(path, canonical=False)
    assert (ours.config.pad, ours.config.end, ours.config.start) == (0, 1, None)
    ours.save(tmp_path)
    peer = Siglip2Tokenizer.from_pretrained(
        tmp_path, padding_side="right", add_eos_token=True, add_bos_token=False
    )
    texts = without_names(nasty(), data)
    saved = siglip_tokenizer(tmp_path, canonical=False)
    tokens = ours.encode(texts).tokens
    assert torch.equal(saved.encode(texts).tokens, tokens)
    for text, row, length in zip(texts, tokens, ours.encode(texts).lengths, strict=True):
        ids = peer(text, add_special_tokens=False).input_ids[:63]
        assert row.tolist() == [*ids, 1] + [0] * (63 - len(ids)), repr(text)
        assert length == len(ids) + 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 pieces"),
        (b"\x0a\x05\x0a", "damaged|cut short"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not a protocol buffer"),
        (b"hello world, I am no model", "not a SentencePiece model"),
        (b"\x0a\x03\x0a\x01a\x1a\x02\x28\x00", "unescaped"),
        (b"\x0a\x03\x0a\x01a\x12\x03\xc0\x01\x01", "after words"),
    ],
)
def test_what_is_no_model_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        read_vocabulary(data)


def test_a_model_cut_short_is_refused(models):
    with pytest.raises(ValueError, match=r"SentencePiece model"):
        read_vocabulary(models["pairs"][:-3])

"""SentencePiece vocabularies (`spiece.model`, `tokenizer.model`, `.spm`) over `tokenizers`.

SigLIP and Gemma are published with one. The file is a protocol buffer of three messages that matter
here: the pieces with their scores, the kind of model, and how text is normalised before it (Kudo
and Richardson 2018, arXiv:1808.06226). It is read by a few lines of wire format, not executed.

Known differences from SentencePiece itself: a control piece such as `</s>` inside a text becomes
that token, as in transformers; and where a normalisation rule spans several characters of one
grapheme, `tokenizers` looks up the whole grapheme and SentencePiece its longest prefix.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, PAIRS, WORDS = 1, 2, 3
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_PIECES = 2_000_000


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class Vocabulary(NamedTuple):
    """The settings that encoding and decoding need."""

    pieces: list[Piece]
    model: int
    byte_fallback: bool
    charsmap: bytes  # compiled rules from characters to characters; empty for none
    dummy_prefix: bool  # a space before the text
    extra_whitespace: bool  # False: runs of spaces become one, and none stays at the ends


def read_vocabulary(data: bytes) -> Vocabulary:
    """The content of a SentencePiece file.

    Raises:
        ValueError: not such a file, a damaged one, or one with a setting that is not supported.
    """
    pieces: list[Piece] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(dict(_fields(value))))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a SentencePiece model, or a damaged one ({error})") from None
    if not pieces or len(pieces) > MAX_PIECES:
        raise ValueError(f"not a SentencePiece model: it has {len(pieces):,} pieces")
    if trainer.get(24, 0):
        raise ValueError("SentencePiece models with spaces after words are not supported")
    if not normalizer.get(5, 1):
        raise ValueError("SentencePiece models that keep spaces unescaped are not supported")
    charsmap = normalizer.get(2, b"")
    return Vocabulary(
        pieces,
        model=int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        dummy_prefix=bool(normalizer.get(3, 1)),
        extra_whitespace=not normalizer.get(4, 1),
    )


def sentencepiece_tokenizer(data: bytes) -> Tokenizer:
    """A `tokenizers` tokenizer that splits text as the SentencePiece model in `data` does.

    It adds no start or end token. Raises ValueError as `read_vocabulary`.
    """
    vocabulary = read_vocabulary(data)
    tokenizer = Tokenizer(_model(vocabulary))
    steps = _normalizers(vocabulary)
    tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    if vocabulary.model == WORDS:  # a word is a space and what follows it
        split = pre_tokenizers.Split(SPACE, "merged_with_next")
        tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    tokenizer.decoder = _decoder(vocabulary)  # type: ignore[assignment]
    special = [p.text for p in vocabulary.pieces if p.kind in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    symbols = [p.text for p in vocabulary.pieces if p.kind == USER_DEFINED]
    if symbols and vocabulary.dummy_prefix and vocabulary.model != WORDS:
        # `tokenizers` normalises the text between symbols separately, each with a space in front.
        raise ValueError(
            f"a SentencePiece model with user-defined symbols, such as {symbols[0]!r}, and a space "
            "before the text is not supported: convert it to tokenizer.json with its own library"
        )
    tokenizer.add_tokens([AddedToken(s, normalized=False) for s in symbols])
    return tokenizer


def _model(vocabulary: Vocabulary) -> BPE | Unigram | WordLevel:
    pieces = vocabulary.pieces
    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    if unknown is None:
        raise ValueError("the SentencePiece model has no piece for unknown characters")
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise ValueError("the SentencePiece model has a piece twice")
    if vocabulary.model == UNIGRAM:
        scores = [(piece.text, piece.score) for piece in pieces]
        return Unigram(scores, unknown, vocabulary.byte_fallback)
    if vocabulary.model == PAIRS:
        return BPE(
            ids, _merges(pieces, ids), unk_token=pieces[unknown].text, fuse_unk=True,
            byte_fallback=vocabulary.byte_fallback,
        )  # fmt: skip
    if vocabulary.model == WORDS:
        return WordLevel(ids, unk_token=pieces[unknown].text)
    raise ValueError("SentencePiece models of single characters are not supported")


def _merges(pieces: Sequence[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in the order in which they are merged: by the score of the result.

    SentencePiece merges the neighbours that make the best piece, so every split of a piece into two
    pieces is a merge.
    """
    usable = {p.text for p in pieces if p.kind in (NORMAL, USER_DEFINED)}
    merges = [
        (-piece.score, ids[piece.text], piece.text[:cut], piece.text[cut:])
        for piece in pieces
        if piece.kind == NORMAL
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in usable and piece.text[cut:] in usable
    ]
    return [(left, right) for _, _, left, right in sorted(merges)]


def _normalizers(vocabulary: Vocabulary) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if vocabulary.charsmap:
        steps.append(normalizers.Precompiled(vocabulary.charsmap))
    if not vocabulary.extra_whitespace:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if vocabulary.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return steps


def _decoder(vocabulary: Vocabulary) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    if vocabulary.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if vocabulary.dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _piece(fields: dict[int, bytes | int]) -> Piece:
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("not a SentencePiece model: a piece is not text, score and kind")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protocol buffer message, unknown fields included."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, place = _varint(data, place)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError("not a SentencePiece model: not a protocol buffer")
        if place + size > len(data):
            raise ValueError("not a SentencePiece model, or one cut short")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("not a SentencePiece model: not a protocol buffer")

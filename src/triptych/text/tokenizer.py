"""Strings to tokens and back, for CLIP, SigLIP, Gemma and vocabularies learned from captions.

The `tokenizers` library splits the text; `TokenizerConfig` holds what a model expects around it:
start and end tokens, padding, length, and how SigLIP's text is cleaned. Getting these wrong costs
a published SigLIP between 12 and 70 points of accuracy without any error.

Dimensions: B texts, T tokens.
"""

import copy
import gzip
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from jaxtyping import Int64
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from triptych import atomic
from triptych.config import BadFile
from triptych.fields import bounded
from triptych.text.sentencepiece import sentencepiece_tokenizer

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
CLIP_MERGES = 49_152 - 256 - 2  # OpenAI's file lists more than its models use
CLIP_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.model")
MAX_BYTES = 256 << 20  # Gemma 3's tokenizer.json is 33 MB
PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


@dataclass(frozen=True)
@bounded
class TokenizerConfig:
    """What a model expects of its tokens besides the vocabulary."""

    length: int = 77
    """Tokens per text, including start and end; shorter texts are padded to it."""
    pad: int = 0
    """The token after the end: 0 in open_clip, the end token again in transformers' CLIP."""
    start: int | None = None
    """The token before every text; SigLIP has none."""
    end: int | None = None
    """The token after every text, kept when the text is cut."""
    lower: bool = False
    """Lower-case the text first, for vocabularies that do not do it themselves: SigLIP 2."""
    canonical: bool = False
    """Lower case, no punctuation, single spaces: SigLIP 1."""
    written_pad: bool = False
    """The padding token is recognised inside a text: transformers reads `!` as padding where a
    folder pads with it (SD 2.x, XL's second tower); open_clip reads an exclamation mark.
    """

    def __post_init__(self) -> None:
        around = (self.start is not None) + (self.end is not None)
        if self.length <= around:
            raise ValueError(f"length {self.length} leaves no room for text beside {around} tokens")


class Encoded(NamedTuple):
    """Texts as tokens."""

    tokens: Int64[Tensor, "B T"]
    lengths: Int64[Tensor, " B"]  # with start and end, before padding
    cut: tuple[str, ...]  # the end of each text that did not fit, or ""


class Tokenizer:
    """Text to the tokens that a model was trained on, and back.

    Follows the published libraries (transformers, where they differ): the name of a special token
    inside a text becomes that token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig):
        self.config = config
        self.vocabulary: int = backend.get_vocab_size(with_added_tokens=True)
        for name in ("pad", "start", "end"):
            token = getattr(config, name)
            if token is not None and token >= self.vocabulary:
                raise ValueError(
                    f"the {name} token {token} is not in the vocabulary of {self.vocabulary:,} "
                    "tokens: the settings belong to another tokenizer"
                )
        backend.no_truncation()
        backend.no_padding()
        if config.lower and b'"Lowercase"' not in _state(backend.normalizer):
            steps = [normalizers.Lowercase()]
            steps += [backend.normalizer] if backend.normalizer is not None else []
            backend.normalizer = normalizers.Sequence(steps)
        if config.written_pad:
            backend.add_special_tokens([AddedToken(backend.id_to_token(config.pad), special=True)])
        self._backend = backend
        self._suffix: str = getattr(backend.model, "end_of_word_suffix", None) or ""
        self._words: dict[str, list[int]] = {}  # learned words in lower case, with their tokens
        self._word = re.compile("((?!))")  # never matches

    def with_words(self, words: Mapping[str, int]) -> "Tokenizer":
        """A copy in which `pieces` turns each of these words into `count` new tokens, numbered from
        `vocabulary` on; case does not matter.
        """
        other = copy.copy(self)
        other._words, first = {}, self.vocabulary
        for word, count in words.items():
            other._words[word.lower()] = list(range(first, first + count))
            first += count
        longest_first = sorted(words, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"
        other._word = re.compile(rf"(?<!\w)({alternatives})(?!\w)", re.IGNORECASE)
        return other

    @property
    def learned(self) -> tuple[str, ...]:
        """The words that `with_words` has added, in lower case."""
        return tuple(self._words)

    def encode(self, texts: Sequence[str], *, full: bool = True) -> Encoded:
        """Tokens of each text: start, text, end, padding.

        `full` pads to the model's length; otherwise only to the longest of these texts, which is
        exact for a causal tower pooled at the end token. A text that is too long is cut before its
        end token, and `cut` has what was lost (for SigLIP 1 in its cleaned form).
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, not the string {texts[:40]!r}")
        rows, cut = [], []
        for text in texts:
            row, lost = self._row(text)
            rows.append(row)
            cut.append(lost)
        longest = self.config.length if full else max(map(len, rows), default=0)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        padded = [row + [self.config.pad] * (longest - len(row)) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)
        return Encoded(tokens, lengths, tuple(cut))

    def decode(self, tokens: Int64[Tensor, "B T"] | Sequence[Sequence[int]]) -> list[str]:
        """The text up to each row's end token. CLIP's tokens do not keep capitals and spacing."""
        rows = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return [self._text(list(row)) for row in rows]

    def pieces(self, text: str) -> list[int]:
        """All tokens of a text, without start, end, padding or a limit."""
        tokens: list[int] = []
        for place, part in enumerate(self._word.split(text)):
            tokens += self._words[part.lower()] if place % 2 else self._split(part)[0].ids
        return tokens

    @property
    def room(self) -> int:
        """The tokens of a text that are read, beside start and end."""
        config = self.config
        return config.length - (config.start is not None) - (config.end is not None)

    def name(self, token: int) -> str:
        """A token as the vocabulary spells it."""
        return self._backend.id_to_token(token) or ""

    def pairs(self) -> tuple[dict[str, int], list[str]] | None:
        """Token numbers and merges of a CLIP vocabulary, None for another kind: the content of
        `vocab.json` and `merges.txt` in a transformers folder.
        """
        model = json.loads(self._backend.to_str())["model"]
        if model.get("type") != "BPE" or self._suffix != SUFFIX:
            return None
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        return dict(self._backend.get_vocab(with_added_tokens=True)), merges

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        text: str = self._backend.to_str(pretty=True)
        return text

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, which transformers reads too; atomic."""
        with atomic.replace_file(folder / "tokenizer.json") as temporary:
            atomic.write_text(temporary, self.to_json())

    def _split(self, text: str) -> tuple[tokenizers.Encoding, str]:
        """The encoding, and the cleaned text that its offsets refer to."""
        if not text.isascii():  # replace lone surrogates, which JSON can contain
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = canonical(text) if self.config.canonical else text
        # Not encode_batch: after its threads have run, every forked process prints a warning.
        return self._backend.encode(text, add_special_tokens=False), text

    def _row(self, text: str) -> tuple[list[int], str]:
        config, room = self.config, self.room
        encoding, text = self._split(text)
        before = [] if config.start is None else [config.start]
        after = [] if config.end is None else [config.end]
        ids: list[int] = encoding.ids
        lost = text[encoding.offsets[room][0] :].strip() if len(ids) > room else ""
        return before + ids[:room] + after, lost

    def _text(self, row: list[int]) -> str:
        config = self.config
        row = row[1:] if row and row[0] == config.start else row
        if config.end is None:
            while row and row[-1] == config.pad:
                row.pop()
        elif config.end in row:
            row = row[: row.index(config.end)]
        text: str = self._backend.decode(row, skip_special_tokens=True)
        return text.replace(self._suffix, " ").strip() if self._suffix else text


def canonical(text: str) -> str:
    """SigLIP 1's text: lower case, underscores to spaces, no punctuation, single spaces.

    As its authors wrote it (big_vision) and open_clip has it; transformers deletes an underscore.
    """
    return " ".join(text.translate(PUNCTUATION).lower().split())


def open_tokenizer(source: Path, config: TokenizerConfig) -> Tokenizer:
    """A tokenizer with these settings, from its folder or file.

    A folder has `tokenizer.json`, or `vocab.json` and `merges.txt`, or OpenAI's
    `bpe_simple_vocab_16e6.txt.gz`, or a SentencePiece model; a path to one of these files works
    too.

    Raises:
        ValueError: no such file, or one that cannot be read.
    """
    return Tokenizer(open_backend(source), config)


def clip_tokenizer(source: Path, length: int = 77, *, pad: int | None = None) -> Tokenizer:
    """CLIP's byte-pair tokenizer, from a folder or file as in `open_tokenizer`.

    Texts are cleaned as in transformers' CLIPTokenizer: lower case, single spaces; HTML entities
    and broken encodings stay as they are (open_clip repairs them first).

    `pad` None takes the padding token of the folder's `tokenizer_config.json` or
    `special_tokens_map.json`, else 0. Raises ValueError as `open_tokenizer`, and for a vocabulary
    without CLIP's special tokens.
    """
    backend = open_backend(source)
    start = _token(backend, START, "<start_of_text>", "<s>")
    end = _token(backend, END, "<end_of_text>", "</s>")
    if start is None or end is None:
        raise BadFile(source, f"is not a CLIP tokenizer: it has no {START} and {END} tokens")
    named = _read_pad(source) if pad is None else None
    if pad is None:
        pad = 0 if named is None else (backend.token_to_id(named) or 0)
    written = named is not None and pad not in (start, end)
    return Tokenizer(backend, TokenizerConfig(length, pad, start, end, written_pad=written))


def siglip_tokenizer(source: Path, length: int = 64, canonical: bool = True) -> Tokenizer:
    """SigLIP's tokenizer: `canonical` text for SigLIP 1, else lower-cased text for SigLIP 2.

    No start token; every text ends with the end token and is padded to the full length, by the end
    token where the vocabulary is T5's (SigLIP 1) and by `<pad>` where it is Gemma's (SigLIP 2). A
    vocabulary of CLIP's form is of a SigLIP trained here. Raises ValueError as `open_tokenizer`.
    """
    backend = open_backend(source)
    end, pad = _token(backend, "<eos>"), _token(backend, "<pad>")
    if end is None:
        end = pad = _token(backend, "</s>")
    if end is None and _token(backend, END) is not None:
        return clip_tokenizer(source, length)
    if end is None or pad is None:
        raise BadFile(source, "is not a SigLIP tokenizer: it has no <eos> or </s>")
    config = TokenizerConfig(length, pad, None, end, lower=not canonical, canonical=canonical)
    return Tokenizer(backend, config)


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """Learn a vocabulary of CLIP's form from captions: byte pairs with marked word ends.

    All bytes, all bytes at the end of a word, then the most frequent pairs that occur at least
    twice, then the start and the end token, which has the highest number and also pads, as in
    transformers. The same captions give the same vocabulary. It has fewer than `vocabulary` tokens
    if the captions have too few pairs.

    Raises:
        ValueError: `vocabulary` is below 514, the bytes and special tokens alone.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet + [letter + SUFFIX for letter in alphabet]
    if vocabulary < len(letters) + 2:
        raise ValueError(f"vocabulary must be at least {len(letters) + 2} tokens, not {vocabulary}")
    learner = tokenizers.Tokenizer(BPE(end_of_word_suffix=SUFFIX))
    _clip_text(learner)
    trainer = BpeTrainer(
        vocab_size=vocabulary - 2, min_frequency=2, show_progress=False, end_of_word_suffix=SUFFIX,
        # Fixed numbers for the letters: else they come in a random order, which breaks ties.
        special_tokens=letters,
    )  # fmt: skip
    learner.train_from_iterator(iter(captions), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    backend = _clip_backend(merges)
    size = backend.get_vocab_size()
    return Tokenizer(backend, TokenizerConfig(length, pad=size - 1, start=size - 2, end=size - 1))


def open_backend(source: Path) -> tokenizers.Tokenizer:
    """The vocabulary of a folder or file as in `open_tokenizer`, without settings."""
    if source.is_dir():
        source = _find_file(source)
    try:
        if source.name == "vocab.json":
            return _read_vocab_json(source)
        data = _read(source)
        if ".txt" in source.suffixes:
            lines = data.decode("utf-8").split("\n")
            return _clip_backend(_read_merges(lines[1 : CLIP_MERGES + 1]))
        if data.lstrip()[:1] == b"{":
            return tokenizers.Tokenizer.from_buffer(data)
        return sentencepiece_tokenizer(data)
    except Exception as error:  # `tokenizers` raises plain Exceptions
        if isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BadFile(source, f"cannot be read as a tokenizer: {reason}") from None


def _find_file(folder: Path) -> Path:
    names = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz", *SENTENCEPIECE)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadFile(folder, f"has no tokenizer file: none of {', '.join(names)}")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES >> 20} MiB")
    if data.startswith(b"version https://git-lfs"):
        raise ValueError("it is a git-lfs pointer; fetch the file with `git lfs pull`")
    return data


def _read_vocab_json(vocabulary: Path) -> tokenizers.Tokenizer:
    """From `vocab.json` and `merges.txt`, the older form of a transformers folder."""
    lines = _read(vocabulary.with_name("merges.txt")).decode("utf-8").split("\n")
    return _clip_backend(_read_merges(lines), json.loads(_read(vocabulary)))


def _read_merges(lines: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        tuple(s.split()) for s in lines if re.fullmatch(r"\S+ \S+\r?", s) and s[0:9] != "#version:"
    ]


def _clip_backend(
    merges: Sequence[tuple[str, ...]], ids: dict[str, int] | None = None
) -> tokenizers.Tokenizer:
    """CLIP's splitting with these merges; OpenAI's numbering unless `ids` has another."""
    if ids is None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        names = alphabet + [letter + SUFFIX for letter in alphabet]
        names += ["".join(pair) for pair in merges] + [START, END]
        ids = {name: number for number, name in enumerate(names)}
    model = BPE(ids, merges, unk_token=END, end_of_word_suffix=SUFFIX, continuing_subword_prefix="")  # type: ignore[arg-type]
    backend = tokenizers.Tokenizer(model)
    _clip_text(backend)
    backend.decoder = tokenizers.decoders.ByteLevel()
    start, end = ids[START], ids[END]
    # As published: inside a text the end token is case-sensitive, the start token is not.
    marks = [AddedToken(START, normalized=True), AddedToken(END, normalized=False)]
    backend.add_special_tokens(marks)
    backend.post_processor = processors.RobertaProcessing(
        (END, end), (START, start), trim_offsets=False, add_prefix_space=False
    )
    return backend


def _clip_text(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _token(backend: tokenizers.Tokenizer, *names: str) -> int | None:
    return next((i for i in map(backend.token_to_id, names) if i is not None), None)


def _read_pad(source: Path) -> str | None:
    """The padding token that a transformers folder names.

    Where its two files differ, transformers follows special_tokens_map.json in older folders, which
    have no `added_tokens_decoder` (SD 2.x pads with `!`), and tokenizer_config.json in others.
    """
    folder = source if source.is_dir() else source.parent
    files: list[dict[str, Any]] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        try:
            data: Any = json.loads(_read(path)) if path.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise BadFile(path, "is not JSON. Fetch it again") from error
        files.append(data if isinstance(data, dict) else {})
    if "added_tokens_decoder" not in files[0]:
        files.reverse()
    for data in files:
        pad = data.get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if isinstance(pad, str):
            return pad
    return None


def _state(normalizer: Any) -> bytes:
    return b"" if normalizer is None else bytes(normalizer.__getstate__())

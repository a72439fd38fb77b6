"""SentencePiece's byte pairs, by scores: the vocabulary of a GGUF file, which lists no merges.

A text is split into letters, and the neighbours whose union has the highest score are merged until
no union is in the vocabulary (github.com/google/sentencepiece, bpe_model.cc). Letters outside the
vocabulary become bytes.
"""

import heapq
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

SPACE = "▁"
UNKNOWN_NAME = "<unk>"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""What a piece is, as SentencePiece and GGUF number it. Control pieces have no text, and user
pieces are found before any merge.
"""
WORD = 100
"""Letters of the longest word that is remembered."""


class ScoredPieces:
    """A vocabulary of pieces with scores."""

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float], kinds: Sequence[int]):
        """
        Raises:
            ValueError: the lists have different lengths, a piece is no text, or bytes are missing.
        """
        if not len(pieces) == len(scores) == len(kinds):
            raise ValueError(
                f"has {len(pieces):,} tokens, {len(scores):,} scores and {len(kinds):,} types"
            )
        # all at once, since there are hundreds of thousands: no text has the byte 255
        whole = b"\xff".join(pieces).decode("utf-8", "surrogateescape")
        if re.search("[\udc80-\udcfe]", whole):
            raise ValueError("has tokens that are no text in UTF-8")
        self.pieces = whole.split("\udcff")
        self.vocabulary = len(pieces)
        self._scores = scores
        special = [i for i, kind in enumerate(kinds) if kind != NORMAL]
        self.controls = {i for i in special if kinds[i] not in (USER, BYTE)}
        users = [i for i in special if kinds[i] == USER]
        for i in users:  # written with plain spaces
            self.pieces[i] = self.pieces[i].replace(" ", SPACE)
        self._users = {self.pieces[i]: i for i in users}
        self._controls = {self.pieces[i]: i for i in self.controls}
        self._bytes = {int(self.pieces[i][3:5], 16): i for i in special if kinds[i] == BYTE}
        if len(self._bytes) != 256:
            raise ValueError(f"has tokens for {len(self._bytes)} of the 256 bytes")
        self._byte_of = {token: byte for byte, token in self._bytes.items()}
        self._ids = dict(zip(self.pieces, range(self.vocabulary), strict=True))
        for i in special:
            self._ids.pop(self.pieces[i], None)
        self._found = _any_of(self._users)
        self._spaces = _any_of(name for name in self._users if not name.strip(SPACE))
        # No piece holds a space after another letter, but for some such as ">▁</": so words can be
        # split alone, and remembered. After the letters of those, text is not cut.
        inner = set(re.findall(f"([^{SPACE}\udcff]){SPACE}", whole))
        self._words = re.compile(f"(?<=[^{SPACE}{re.escape(''.join(sorted(inner)))}])(?={SPACE})")
        self._remembered = lru_cache(1 << 16)(self._merge)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; names of control tokens are ordinary letters."""
        tokens: list[int] = []
        for place, part in enumerate(self._found.split(text)):
            if place % 2:
                tokens.append(self._users[part])
            else:
                tokens += self._between(part.replace(" ", SPACE))
        return tokens

    def _between(self, text: str) -> list[int]:
        """The tokens of a text without user pieces, but for runs of spaces."""
        tokens: list[int] = []
        for place, part in enumerate(self._spaces.split(text)):
            if place % 2:
                tokens.append(self._users[part])
                continue
            for word in self._words.split(part):
                if word:
                    tokens += (self._remembered if len(word) <= WORD else self._merge)(word)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; control tokens have none, and bytes that are no text become �."""
        parts: list[str] = []
        waiting = bytearray()
        for token in (*tokens, None):
            if token in self._byte_of:
                waiting.append(self._byte_of[token])
                continue
            if waiting:
                parts.append(_text_of(bytes(waiting)))
                waiting.clear()
            if token is not None and token not in self.controls:
                parts.append(self.pieces[token])
        return "".join(parts).replace(SPACE, " ")

    def token(self, name: str) -> int | None:
        """The number of a piece, also of a control piece."""
        return self._controls.get(name, self._users.get(name, self._ids.get(name)))

    def to_json(self) -> str:
        """The content of a `tokenizer.json` that encodes the same: scores become an order of
        merges. It takes some seconds for 262,144 pieces.
        """
        names = sorted((token, name) for name, token in (self._users | self._controls).items())
        added = [
            {
                "id": token, "content": name, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": token in self.controls,
            }
            for token, name in names
        ]  # fmt: skip
        decoders = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        model = {
            "type": "BPE", "dropout": None,
            "unk_token": UNKNOWN_NAME if UNKNOWN_NAME in self._controls else None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False,
            "vocab": dict(zip(self.pieces, range(self.vocabulary), strict=True)),
            "merges": self._merges(),
        }  # fmt: skip
        whole = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": decoders}, "model": model,
        }  # fmt: skip
        return json.dumps(whole, ensure_ascii=False)

    def _merges(self) -> list[tuple[str, str]]:
        """The pairs of pieces whose union is one, those with the best union first, of the same
        union those with the longest left part: the order of published files. Runs of one letter,
        which the file lists as pieces of the user, come before all others.
        """
        runs = [name for name in self._users if len(name) > 1 and len(set(name)) == 1]
        known = self._ids.keys() | set(runs) | {name[0] for name in runs}
        pairs = [(name[:at], name[at:]) for name in runs for at in range(len(name) - 1, 0, -1)]
        found = [pair for pair in pairs if pair[0] in known and pair[1] in known]
        found.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))
        for name in sorted(self._ids, key=lambda name: -self._scores[self._ids[name]]):
            for at in range(len(name) - 1, 0, -1):
                if name[:at] in known and name[at:] in known:
                    found.append((name[:at], name[at:]))
        return found

    def _merge(self, word: str) -> tuple[int, ...]:
        """Merge neighbours, the best union first, of equal ones the leftmost."""
        parts: list[str | None] = list(word)
        before, after = list(range(-1, len(word) - 1)), list(range(1, len(word) + 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right >= len(parts):
                return
            union = f"{parts[left]}{parts[right]}"
            token = self._ids.get(union)
            if token is not None:
                heapq.heappush(queue, (-self._scores[token], left, right, union))

        for i in range(len(word) - 1):
            offer(i, i + 1)
        while queue:
            _, left, right, union = heapq.heappop(queue)
            # parts may have changed since the offer
            if parts[left] is None or parts[right] is None or after[left] != right:
                continue
            if f"{parts[left]}{parts[right]}" != union:
                continue
            parts[left], parts[right] = union, None
            after[left] = after[right]
            if after[right] < len(parts):
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        tokens: list[int] = []
        for part in parts:
            if part is not None:
                token = self._ids.get(part)
                tokens += self._spelled(part) if token is None else [token]
        return tuple(tokens)

    def _spelled(self, letter: str) -> list[int]:
        """A letter outside the vocabulary as the tokens of its bytes."""
        return [self._bytes[byte] for byte in letter.encode("utf-8", "replace")]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these texts, the longest first, as one group."""
    found = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, found))})" if found else "((?!))")


def _text_of(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "�" * len(data)

"""Text for language models: tokens of any text and back, turns of a chat, text as it is generated.

Special tokens are only ever put in by this module: their names in somebody's text are text.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from triptych import atomic
from triptych.config import BadFile
from triptych.text.locations import CODE_NAMES, LOCATION_NAMES, MARK
from triptych.text.tokenizer import open_backend

START, END, PAD, UNKNOWN = "<bos>", "<eos>", "<pad>", "<unk>"
SPACE = "▁"
TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"
PLACEHOLDER = re.compile(
    r"<unused\d+>|<mask>|<2mass>|\[@BOS@\]|\[multimodal\]|<image(_soft_token)?>|<(start|end)_of_image>"
)
"""Tokens without text that files do not mark as special."""
REPLACED = "�"
"""What stands for bytes that are no text yet."""


class Vocabulary(Protocol):
    """Text to tokens and back."""

    vocabulary: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Iterable[int]) -> str: ...

    def token(self, name: str) -> int | None: ...

    def to_json(self) -> str: ...


class LibraryVocabulary:
    """A `tokenizer.json`, split by the `tokenizers` library."""

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder().values()
        hidden = [t.content for t in added if not t.special and _is_hidden(t.content)]
        backend.add_special_tokens([AddedToken(name, special=True) for name in hidden])
        backend.encode_special_tokens = True  # their names in a text are text
        self.backend = backend
        self.vocabulary: int = backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        text: str = self.backend.decode(list(tokens), skip_special_tokens=True)
        return text

    def token(self, name: str) -> int | None:
        found: int | None = self.backend.token_to_id(name)
        return found

    def to_json(self) -> str:
        """The content of its `tokenizer.json`."""
        text: str = self.backend.to_str(pretty=True)
        return text


def _is_hidden(name: str) -> bool:
    return bool(PLACEHOLDER.fullmatch(name) or MARK.fullmatch(name))


Role = Literal["system", "user", "model"]
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "model": "model",
    "assistant": "model",
}


class Message(NamedTuple):
    """One turn of a chat."""

    role: Role
    text: str


class LanguageTokenizer:
    """The vocabulary of a language model, and its special tokens."""

    def __init__(self, vocabulary: Vocabulary):
        """
        Raises:
            ValueError: it has no start or end token.
        """
        self._inner = vocabulary
        self.vocabulary = vocabulary.vocabulary
        self.start, self.end = self.require(START), self.require(END)
        self.pad = vocabulary.token(PAD) or 0
        self.turn_end = vocabulary.token(TURN_END)
        marks = (*LOCATION_NAMES, *CODE_NAMES)
        known = vocabulary.token(LOCATION_NAMES[0]) is not None
        self._marks = {vocabulary.token(name): name for name in marks} if known else {}

    @property
    def locates(self) -> bool:
        """Whether it has tokens for locations and the codes of masks."""
        return bool(self._marks)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return (self.end,) if self.turn_end is None else (self.end, self.turn_end)

    def require(self, name: str) -> int:
        """The number of a special token.

        Raises:
            ValueError: there is none.
        """
        token = self._inner.token(name)
        if token is None:
            raise ValueError(f"its vocabulary has no {name}: it is no tokenizer of a Gemma")
        return token

    def encode(self, text: str) -> list[int]:
        """The tokens of a text alone, without a start token."""
        if not text.isascii():  # replace lone surrogates, which JSON can contain
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._inner.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without the special ones but for places and codes of masks."""
        if not self._marks:
            return self._inner.decode(tokens)
        parts: list[str] = []
        words: list[int] = []
        for token in (*tokens, None):
            if token is None or token in self._marks:
                parts += [self._inner.decode(words), self._marks.get(token, "")]
                words = []
            else:
                words.append(token)
        return "".join(parts)

    def continuation(self, text: str) -> list[int]:
        """The tokens of a text to be continued, from the start token on."""
        return [self.start, *self.encode(text)]

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer that is learned, with its end token: places and codes of masks,
        `<loc0123>`, are words in it.
        """
        tokens: list[int] = []
        end = 0
        for match in MARK.finditer(text):
            tokens += [*self.encode(text[end : match.start()]), self.require(match[0])]
            end = match.end()
        return [*tokens, *self.encode(text[end:]), self.end]

    def question(self, prefix: str) -> list[int]:
        """The prefix of an answer about a picture, as PaliGemma was trained: the start token, the
        text, and a newline, which is a token of its own.
        """
        return [self.start, *self.encode(prefix.rstrip("\n")), *self.encode("\n")]

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat, up to where the model answers.

        The system prompt stands before the first text of the user, as Gemma was trained.

        Raises:
            ValueError: no turns, turns that do not alternate, or a model without turns.
        """
        if self._inner.token(TURN) is None or self.turn_end is None:
            raise ValueError(
                "this model was not trained to chat: it has no tokens for turns. Give it the start "
                "of a text with --raw"
            )
        turns = list(messages)
        system = ""
        if turns and turns[0].role == "system":
            system = turns.pop(0).text.strip() + "\n\n"
        if not turns:
            raise ValueError("a chat needs at least one turn of the user")
        tokens = [self.start]
        for place, (role, text) in enumerate(turns):
            if role != ("user", "model")[place % 2]:
                raise ValueError(
                    f"turn {place + 1} is the {role}'s: user and model alternate, and the system "
                    "prompt comes first"
                )
            text = (system if place == 0 else "") + text.strip()
            turn = self.encode(f"{role}\n{text}")
            tokens += [self.require(TURN), *turn, self.turn_end, *self.encode("\n")]
        if turns[-1].role != "user":
            raise ValueError("the last turn is the model's: there is nothing to answer")
        return [*tokens, self.require(TURN), *self.encode("model\n")]

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return self._inner.to_json()

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, which transformers reads too; atomic."""
        with atomic.replace_file(folder / "tokenizer.json") as temporary:
            atomic.write_text(temporary, self.to_json())


def train_language_tokenizer(
    texts: Iterable[str], vocabulary: int, places: bool = False
) -> LanguageTokenizer:
    """Learn a vocabulary of Gemma's form: byte pairs within words, spaces as `▁`, letters that are
    not in it as bytes, and tokens for turns.

    It has at most `vocabulary` tokens, and with `places` those of locations and masks besides. The
    same texts give the same vocabulary.

    Raises:
        ValueError: `vocabulary` is below 320, bytes and special tokens alone.
    """
    if vocabulary < 320:
        raise ValueError(f"vocabulary must be at least 320 tokens, not {vocabulary}")
    special = (PAD, END, START, UNKNOWN, TURN, TURN_END)
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = tokenizers.Tokenizer(BPE(unk_token=UNKNOWN, byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    learner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[*special, *letters],
        show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator((text.replace(" ", SPACE) for text in texts), trainer)
    stored = json.loads(learner.to_str())
    stored["added_tokens"] = stored["added_tokens"][: len(special)]  # bytes are none
    backend = tokenizers.Tokenizer.from_str(json.dumps(stored))
    names = ("\n", *LOCATION_NAMES, *CODE_NAMES) if places else ("\n",)
    backend.add_tokens([AddedToken(name, normalized=False) for name in names])
    return LanguageTokenizer(LibraryVocabulary(backend))


def open_language_tokenizer(source: Path) -> LanguageTokenizer:
    """The tokenizer of a folder, `tokenizer.json` or `tokenizer.model`, or of such a file.

    Raises:
        BadFile: there is none, or it cannot be read.
    """
    backend = open_backend(source)
    try:
        return LanguageTokenizer(LibraryVocabulary(backend))
    except ValueError as error:
        raise BadFile(source, str(error)) from error


class TextStream:
    """Text as its tokens come, up to the first of the texts that stop it.

    A token may end within a letter, and a text within what stops: both wait for more.
    """

    def __init__(self, tokenizer: LanguageTokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._waiting = ""
        self.stopped = False
        """Whether one of the texts has come; nothing is shown from it on."""

    def push(self, token: int) -> str:
        """Add a token, and return the text that is certain now."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith(REPLACED) and len(self._tokens) < 4:  # letters have up to 4 bytes
            return ""
        self._tokens.clear()
        return self._release(text)

    def finish(self) -> str:
        """The text that still waits, when no more tokens come."""
        text = self._release(self._tokenizer.decode(self._tokens)) + self._waiting
        self._tokens.clear()
        self._waiting = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._waiting + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._waiting = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of a text may be the start of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


def read_messages(text: str) -> list[Message]:
    """A chat from lines of JSON with `role` and `content`; the model's role is also `assistant`.

    Raises:
        ValueError: which line is none.
    """
    messages = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            stored = json.loads(line)
            role, content = stored["role"], stored["content"]
        except (ValueError, TypeError, KeyError):
            role = content = None
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f'line {number} is no turn: it must be like {{"role": "user", "content": "Hello"}}'
            )
        messages.append(Message(ROLES[role], content))
    return messages

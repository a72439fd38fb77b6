"""Which words of a prompt a model was not trained on, and what it could be asked for instead.

A model that was trained on a few thousand short captions draws nothing of a word that is not among
them, and does not say so. Its run folder therefore has `words.json`.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.config import errors_about, read_object, write_json
from triptych.fields import from_json, to_json

FILE = "words.json"
WORD = re.compile(r"[^\W_]+")
SYNTAX = re.compile(r"\b(?:AND|BREAK)\b")
SIMILAR = 0.7  # of difflib's ratio, from which one word counts as a misspelling of another
EVERYDAY = {
    "a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "its", "of", "on", "or", "over",
    "the", "to", "under", "with",
}  # fmt: skip
"""Words that name nothing to draw."""
MOST = 100_000
"""Characters of the names of a model, and of its words: of more, a list is of no use."""


@dataclass(frozen=True)
class KnownWords:
    """What a model was trained on: the content of words.json."""

    names: tuple[str, ...] = ()
    """The first caption of each picture, or the classes: what it can be asked for. Empty if there
    are too many to choose from.
    """
    words: tuple[str, ...] = ()
    """Every word of all captions, in lower case."""

    def save(self, folder: Path) -> None:
        """Write words.json; atomic."""
        write_json(folder / FILE, to_json(self))


def read_known_words(folder: Path) -> KnownWords | None:
    """What the model of a run folder was trained on; None where that is not recorded.

    Raises:
        BadFile: words.json is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    with errors_about(path):
        return from_json(KnownWords, read_object(path), FILE)


def collect_words(names: Iterable[str], captions: Iterable[str]) -> KnownWords | None:
    """The names and words of captions; None if these have too many words to list them."""
    different = tuple(dict.fromkeys(names))
    words = sorted({word for caption in captions for word in words_of(caption)})
    if sum(map(len, words)) > MOST:
        return None
    few = sum(map(len, different)) <= MOST
    return KnownWords(different if few else (), tuple(words))


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and in order."""
    return WORD.findall(text.lower())


def unknown_words(prompt: str, words: Collection[str]) -> list[str]:
    """The words of a prompt that are not among `words`, each once; numbers are none."""
    known = EVERYDAY | set(words)
    found = dict.fromkeys(words_of(SYNTAX.sub(" ", prompt)))
    return [word for word in found if word not in known and not word.isdecimal()]


def nearest_names(prompt: str, names: Sequence[str], count: int = 3) -> list[str]:
    """The names that are most like a prompt: those that share words with it, misspelt ones too, and
    of these the ones most of whose words are shared; then those spelt most alike.
    """
    vocabulary = sorted({word for name in names for word in words_of(name)})
    meant: set[str] = set()
    for word in words_of(prompt):
        if word in vocabulary:
            meant.add(word)
        else:
            meant.update(difflib.get_close_matches(word, vocabulary, n=2, cutoff=SIMILAR))
    meant -= EVERYDAY

    def likeness(name: str) -> tuple[float, float]:
        own = set(words_of(name)) - EVERYDAY
        shared = len(own & meant) / len(own | meant) if own else 0.0
        return shared, difflib.SequenceMatcher(None, prompt.lower(), name.lower()).ratio()

    return sorted(names, key=likeness, reverse=True)[:count]


def describe_unknown(
    known: KnownWords | None, prompts: Iterable[str], learned: Collection[str] = ()
) -> tuple[str, ...]:
    """For the user: the words of each prompt that a model was not trained on, and its nearest
    names. `learned` are words that were added to it later.
    """
    if known is None:
        return ()
    there = {*known.words, *(part for word in learned for part in words_of(word))}
    notes = []
    for prompt in dict.fromkeys(prompts):
        if unknown := unknown_words(prompt, there):
            near = nearest_names(prompt, known.names)
            names = f"; the nearest of its names: {', '.join(map(repr, near))}" if near else ""
            notes.append(f"the model was not trained on the words {', '.join(unknown)}{names}")
    return tuple(notes)

"""The texts that a model is trained on: for a new vocabulary, and for the words it knows."""

from collections.abc import Sequence

from triptych.data.captions import captions_of, class_words
from triptych.data.source import Source
from triptych.text.known_words import KnownWords, collect_words

MOST_CAPTIONS = 20_000
"""Pictures whose captions are read."""
ENDLESS = 2_000
"""The same of endless data, which has few words."""


def vocabulary_texts(source: Source, templates: Sequence[str]) -> list[str]:
    """Captions of up to `MOST_CAPTIONS` pictures, or every class name in every template."""
    if source.info.has_captions:
        return [text for texts in captions_of(source, MOST_CAPTIONS) for text in texts]
    return [text.replace("{}", name) for name in source.info.classes for text in templates]


def caption_words(source: Source, templates: Sequence[str]) -> KnownWords | None:
    """The names and words that a source teaches; None where they cannot be listed: of more pictures
    than are read here, or of too many words. Endless data, such as scenes, has words only.
    """
    info = source.info
    if not info.has_captions:
        names = [class_words(name) for name in info.classes]
        return collect_words(names, [*names, *templates])
    if info.length is not None and info.length > MOST_CAPTIONS:
        return None
    captions = captions_of(source, ENDLESS if info.length is None else MOST_CAPTIONS)
    names = [texts[0] for texts in captions if texts] if info.length is not None else []
    return collect_words(names, [text for texts in captions for text in texts])

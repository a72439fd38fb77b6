"""Data that are others than those a training began with: what is said, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

from triptych.data.fingerprint import digest_files
from triptych.data.order.batches import Batches
from triptych.train.recipe import Batch, Recipe

TOKENIZER = "tokenizer.json"


def digest_data(recipe: Recipe, data: Iterator[Batch]) -> str:
    """A digest of stored data; empty for data that are drawn."""
    return digest_files(data.source) if isinstance(data, Batches) else recipe.digest


def changed_since(step: int) -> str:
    """The note that data have changed between two commands."""
    return (
        f"the data have changed since step {step:,} (names, sizes or times of files, or texts): the "
        "run goes on with what is there now, and is not the one that the same data would have given"
    )


def changed_meanwhile(recipe: Recipe, data: Iterator[Batch], before: str) -> str:
    """A note if stored data have changed since the first step of this process."""
    if digest_data(recipe, data) == before:
        return ""
    return "data have changed or gone while this ran: what was read later is not what it began with"


def require_same_vocabulary(run: Path, text: str) -> None:
    """Compare the vocabulary that the texts make now with the one of the steps before.

    Raises:
        ValueError: it is another one.
    """
    file = run / TOKENIZER
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["model"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return  # the next save writes it
    if stored != json.loads(text)["model"]:
        raise ValueError(
            f"{file}: the texts of the data have changed since this run began, and with them the "
            "vocabulary, so that what it has learned of words would be lost. Restore the texts, or "
            "choose another --run"
        )

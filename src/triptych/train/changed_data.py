"""Data that are others than those a training began with: what is said, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

from triptych.data.fingerprint import digest_files
from triptych.data.order.batches import Batches
from triptych.train.distributed import World
from triptych.train.recipe import Batch, Recipe

TOKENIZER = "tokenizer.json"


class DataWatch:
    """Notes about stored data, for all processes alike.

    `step` and `before` are what the checkpoint says: how many steps are finished, and the digest of
    the data when they were taken; empty for data that are drawn, or where it is not known.
    """

    def __init__(
        self, recipe: Recipe, data: Iterator[Batch], world: World, step: int, before: str
    ) -> None:
        self.recipe, self.data, self.world = recipe, data, world
        self.digest = self._compute()
        self.note = ""
        if step and before and before != self.digest:
            self.note = (
                f"the data have changed since step {step:,} (names, sizes or times of files, or "
                "texts): the run goes on with what is there now, and is not the one that the same "
                "data would have given"
            )

    def tell(self, last: bool) -> str:
        """What has not been said yet; at the last step also whether files changed meanwhile."""
        note, self.note = self.note, ""
        if last and self._compute() != self.digest:
            now = "data have changed or gone while this ran: what was read later is not what it "
            note = "\n".join(filter(None, (note, now + "began with")))
        return note

    def _compute(self) -> str:
        return self.world.run_on_first(
            lambda: (
                digest_files(self.data.source)
                if isinstance(self.data, Batches)
                else self.recipe.digest
            )
        )


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

"""The parts that are done: one line of JSON each, appended and synced once their file is there."""

import os
from pathlib import Path

from triptych.data.disk.parts import (
    MANIFEST,
    Finished,
    complete_bytes,
    is_complete,
    read_manifest,
)


class Manifest:
    """The parts of a pass that are done. One process at a time writes, under the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = complete_bytes(folder / MANIFEST)
        self.done: dict[int, Finished] = {}
        """By number; without those whose file is missing or has another size."""
        self.lost: list[int] = []
        """Parts that were entered, whose file is gone or cut short: they are computed again."""
        for finished in read_manifest(folder):
            self.done[finished.part] = finished
        for number, finished in list(self.done.items()):
            if not is_complete(folder, finished):
                del self.done[number]
                self.lost.append(number)

    def enter(self, finished: Finished) -> None:
        """Append a part.

        Raises:
            ValueError: another model computed it than the parts before.
            OSError: the line cannot be written.
        """
        models = {each.model for each in self.done.values()}
        if models and finished.model not in models:
            raise ValueError(
                f"{self.folder}: the model is another than that of the parts that are done. Give "
                "another --out"
            )
        path = self.folder / MANIFEST
        line = (finished.line() + "\n").encode()
        with path.open("ab") as file:
            file.truncate(self.size)  # without a line that a killed process wrote in part
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(line)
        self.done[finished.part] = finished

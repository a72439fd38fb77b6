"""The folder of a pass over many pictures: parts, and a manifest of those that are complete.

`passes/` writes it; a search reads the vectors in it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych.config import BadFile
from triptych.fields import from_json

PLAN, PARTS, MANIFEST = "pass.json", "parts.jsonl", "manifest.jsonl"
"""What the pass is, its parts, and those that are done: a line of JSON each."""


@dataclass(frozen=True)
class Finished:
    """A part whose file is complete: a line of the manifest."""

    part: int
    file: str
    rows: int
    errors: int
    """Rows without a result, which say why."""
    bytes: int
    sha256: str
    model: str
    """Digest of the model that computed it."""

    def line(self) -> str:
        return json.dumps(asdict(self))


def read_manifest(folder: Path) -> list[Finished]:
    """The complete lines of a manifest: a killed process may have written the last in part.

    Raises:
        ValueError: a line is no entry.
    """
    path = folder / MANIFEST
    if not path.exists():
        return []
    data = path.read_bytes()[: complete_bytes(path)]
    try:
        return [from_json(Finished, json.loads(line), str(path)) for line in data.splitlines()]
    except (ValueError, RecursionError) as error:
        raise BadFile(path, f"no manifest of a pass: {error}") from error


def complete_bytes(path: Path) -> int:
    """Bytes up to the end of the last complete line; 0 without a file."""
    try:
        return path.read_bytes().rfind(b"\n") + 1
    except FileNotFoundError:
        return 0


def is_complete(folder: Path, finished: Finished) -> bool:
    """Whether the file of a part is as it was entered, by its size."""
    try:
        return (folder / finished.file).stat().st_size == finished.bytes
    except OSError:
        return False


def read_plan(folder: Path) -> dict[str, Any]:
    """What a pass is: `form`, `request` with its `kind`, `settings`.

    Raises:
        ValueError: the folder has no plan of a pass, or a damaged one.
    """
    path = folder / PLAN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(found[name], dict) for name in ("request", "settings")):
            raise TypeError("no object")
        return dict(found) | {"form": found["form"]}
    except OSError as error:
        raise BadFile(path, error.strerror or "cannot be read") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadFile(path, "no plan of a pass") from error

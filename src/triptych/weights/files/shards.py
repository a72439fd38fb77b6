"""The index of weights in several files: which tensor is in which file."""

import json
from pathlib import Path
from typing import Any

from triptych.weights.files.shapes import MAX_HEADER, MAX_TENSORS

MAX_NAME = 200
"""Characters in the name of a file, of which file systems take 255 bytes."""


def read_index(path: Path) -> dict[str, Any]:
    """The JSON object of an index, or of an error message that was downloaded instead of it."""
    if path.stat().st_size > MAX_HEADER:
        raise ValueError("is a JSON file larger than any index of weights")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError("is JSON that was cut short, not weights. Fetch it again") from error
    return content if isinstance(content, dict) else {}


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index names, and the tensors that each must have. Errors name no file.

    Raises:
        ValueError: the index is damaged, or names files elsewhere.
    """
    files: dict[str, list[str]] = {}
    names = read_index(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError("is an index of no shards. Fetch it again")
    if len(names) > MAX_TENSORS:
        raise ValueError(f"names {len(names):,} tensors; weights have at most {MAX_TENSORS:,}")
    for name, file in names.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or "\\" in file
            or "\0" in file
            or len(file) > MAX_NAME
        ):
            raise ValueError(f"names {str(file)[:200]!r}, which is no file beside it")
        files.setdefault(file, []).append(name)
    return files


def missing_shards(index: Path) -> list[str]:
    """The files that an index names and that are missing from its folder."""
    return [file for file in sorted(shards(index)) if not (index.parent / file).is_file()]

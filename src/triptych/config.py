"""Configuration files: JSON read and written, and errors that name the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from triptych import atomic
from triptych.fields import nearest

Config = TypeVar("Config")
MAX_BYTES = 1 << 20  # of a configuration file


class BadFile(ValueError):
    """A file or folder that cannot be used, and why. Its text is `path: reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)  # both, so that it can be sent to another process
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Name the file in every ValueError raised inside, unless it is a `BadFile` already."""
    try:
        yield
    except BadFile:
        raise
    except ValueError as error:
        raise BadFile(path, str(error)) from error


@contextmanager
def settings_of_others(path: Path) -> Iterator[None]:
    """Name the file in every error of reading another program's settings, which may have any value
    in any place: what a reader stumbles over is a fault of the file.
    """
    with errors_about(path):
        try:
            yield
        except KeyError as error:
            raise ValueError(f"lacks the setting {error}, or has an unknown value") from error
        except (TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise ValueError(
                "has a setting of another type than expected, or out of range. Fetch it again"
            ) from error


@contextmanager
def errors_in(part: str) -> Iterator[None]:
    """Put the name of a part of a configuration before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error


def missing_file(path: Path) -> BadFile:
    """The error for a path that does not exist; it suggests the closest name in its folder."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names)
    return BadFile(path, f"does not exist.{near}" if near else "does not exist")


def read_json(path: Path) -> Any:
    """The content of a small JSON file.

    Raises:
        BadFile: it is too large, or not JSON.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise BadFile(path, f"has {size} bytes; a configuration has at most {MAX_BYTES}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadFile(path, "is not text in UTF-8. Fetch it again, or restore it") from error
    except json.JSONDecodeError as error:
        where = f"from line {error.lineno}, column {error.colno} on"
        raise BadFile(path, f"is not JSON {where}. Fetch it again, or restore it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise BadFile(path, "is JSON nested too deeply, or with too long a number") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        BadFile: it is too large, not JSON, or another JSON value.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadFile(path, "is not a JSON object. Fetch it again")
    return content


def write_json(path: Path, data: Any) -> None:
    """Write JSON: a reader sees the old file or the new one, never half of it."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a file that is no UTF-8, or in a locale without it
        text = json.dumps(data, indent=2)
    with atomic.replace_file(path) as temporary:
        atomic.write_text(temporary, text + "\n")

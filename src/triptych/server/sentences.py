"""Sentences of the package for clients, who have no command line: they name fields."""

import re
from dataclasses import is_dataclass
from functools import cache

from triptych.server.catalog import typed_fields

QUOTED = re.compile(r"`([^`]*)`|[^`]+|`")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)(?: [A-Z]{2,}(?::[A-Z]+)?(?![\w-]))?")
"""An option, with the word that stands for its value in help, as in `--image FILE`."""


def name_fields(sentence: str, kind: type) -> str:
    """A sentence with fields of a request in place of their options: `batch_size`, in backquotes,
    for --batch-size. Options of something else, and whole commands in backquotes, stay.
    """
    names = field_names(kind)

    def put(option: re.Match[str]) -> str:
        name = option[1].replace("-", "_")
        return f"`{name}`" if name in names else option[0]

    def read(part: re.Match[str]) -> str:
        inner = part[1]
        if inner is None:
            return OPTION.sub(put, part[0])
        changed = OPTION.sub(put, inner) if inner.startswith("--") else inner
        return part[0] if changed == inner else changed

    return QUOTED.sub(read, sentence)


@cache
def field_names(kind: type) -> frozenset[str]:
    """The names of the fields of a dataclass, and of those inside it."""
    hints = {field.name: hint for field, hint in typed_fields(kind)}
    inner = [field_names(hint) for hint in hints.values() if is_dataclass(hint)]  # type: ignore[arg-type]
    return frozenset(hints).union(*inner)

"""Dataclasses to plain JSON values and back, with every field checked. No torch and no files.

A configuration or request is a frozen dataclass of numbers, strings, booleans, literals, optionals,
tuples, paths and further dataclasses: only what JSON can represent exactly.
"""

import dataclasses
import difflib
import functools
import math
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
LARGEST = 1 << 20
"""The largest whole number in the configuration of a model: a width, a side, a vocabulary."""
LONGEST = 4096
"""The most numbers of a list there, such as widths, or the mean of each channel."""


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """` Did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def bounded(kind: type[Config]) -> type[Config]:
    """Bound every field of a configuration, before the checks of its own; for below `@dataclass`.

    The configuration of a model may come from anybody's file, and building what it describes must
    end. Each value must have the type of its field, whole numbers are 0 to `LARGEST`, others are
    finite, and lists have at most `LONGEST` values.

    Raises:
        ValueError: when one is made with another value, which is named.
    """
    own_checks = getattr(kind, "__post_init__", None)

    def check(config: Any) -> None:
        for name, hint in _hints(kind).items():  # type: ignore[arg-type]
            _require_bounds(_typed(hint, getattr(config, name), name), name)
        if own_checks is not None:
            own_checks(config)

    kind.__post_init__ = check  # type: ignore[attr-defined]
    return kind


def from_json(kind: type[Config], data: Any, where: str = "") -> Config:
    """JSON values as a dataclass, checked strictly.

    A field that was renamed, `field(metadata={"was": "old_name"})`, is read under either name.

    Args:
        where: what an error calls this object, by default the name of the class.

    Raises:
        ValueError: an unknown or missing field, a field under both of its names, or a value of the
            wrong type, or one that the class refuses. The message names the field, the value and
            what was expected.
    """
    where = where or kind.__name__
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object, not {_shown(data)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    renamed = {f.metadata["was"]: name for name, f in fields.items() if "was" in f.metadata}
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = renamed.get(key, key)
        if name not in fields:
            raise ValueError(f"{where} has no field {key!r}.{nearest(str(key), list(fields))}")
        if name in values:
            older = next(old for old, new in renamed.items() if new == name)
            raise ValueError(
                f"{where} has the field {name!r} twice, also under its old name {older!r}; keep one"
            )
        values[name] = _typed_field(fields[name], hints[name], value, f"{where}.{key}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ValueError(f"{where} lacks the field {name!r}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def set_fields(request: Any, **values: Any) -> None:
    """In the `__post_init__` of a frozen dataclass: replace these fields, then check the types of
    all of them. Lists become tuples, and numbers of numpy and torch Python's.

    Raises:
        ValueError: a value of the wrong type. The message names the field, the value and what was
            expected.
    """
    kind: Any = type(request)
    hints = _hints(kind)
    for field in dataclasses.fields(request):
        value = values.get(field.name, getattr(request, field.name))
        value = _typed_field(field, hints[field.name], value, field.name)
        object.__setattr__(request, field.name, value)


def copy_fields(kind: type[Config], settings: Any, **others: Any) -> Config:
    """A dataclass of this kind: fields that `settings` has too are copied, `others` are given."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    names &= {f.name for f in dataclasses.fields(settings)}
    return kind(**{name: getattr(settings, name) for name in names} | others)


@functools.cache
def field_texts(kind: type) -> Mapping[str, str]:
    """The docstring below each field of a dataclass; none of a class that has no source."""
    import ast  # here: with `inspect` it takes as long as everything else of a quick `--help`
    import inspect
    import textwrap

    if kind.__module__ == "types":  # of dataclasses.make_dataclass
        return {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = below.value if isinstance(below, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[field.target.id] = " ".join(value.value.split())
    return texts


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path | str) else value


def _typed_field(field: Any, hint: Any, value: Any, where: str) -> Any:
    """As `_typed`. A path becomes a text where one is expected, and a field with
    `field(metadata={"several": True})` may hold a list of its values.
    """
    if field.metadata.get("several") and isinstance(value, list | tuple):
        hint = tuple[hint, ...]
    if hint is str and isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    return _typed(hint, value, where)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _require_bounds(value: Any, where: str) -> None:
    if isinstance(value, tuple):
        if len(value) > LONGEST:
            raise ValueError(f"{where} has {len(value):,} values; at most {LONGEST:,} are allowed")
        for each in value:
            _require_bounds(each, where)
    elif isinstance(value, int) and value < 0:
        raise ValueError(f"{where} must be at least 0, not {value}")
    elif isinstance(value, int) and value > LARGEST:
        raise ValueError(f"{where} must be at most {LARGEST:,}, not {_shown(value)}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, not {value}")


def _typed(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and type(value) is hint:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _typed(inner, value, where)
    if origin is Literal:
        if not isinstance(value, tuple({type(a) for a in arguments})) or value not in arguments:
            choices = ", ".join(map(repr, arguments))
            raise ValueError(f"{where} must be one of {choices}, not {_shown(value)}")
        return value
    if origin is tuple:
        if getattr(value, "ndim", 0) == 1:
            value = value.tolist()  # of numpy or torch
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {_shown(value)}")
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, not {_shown(value)}")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if hint in (int, float, bool) and getattr(value, "shape", None) == ():
        value = value.item()  # of numpy or torch
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{where} must be {hint.__name__}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

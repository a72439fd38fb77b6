"""Dataclasses as JSON Schema: for OpenAPI, and for the forms of a page."""

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from triptych.fields import field_texts, to_json
from triptych.given import Names
from triptych.server.catalog import find_mark, typed_fields

Schema = dict[str, Any]
PLAIN = {int: "integer", float: "number", bool: "boolean", str: "string"}


@cache
def schema_of(kind: type) -> Schema:
    """The JSON Schema of a dataclass. Each field has its docstring as description and its default;
    `names` says what a text names (`triptych.given.Names`).
    """
    texts = field_texts(kind)
    properties: dict[str, Schema] = {}
    required = []
    for field, hint in typed_fields(kind):
        one = _schema_of_field(field, hint)
        if text := texts.get(field.name):
            one["description"] = text
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        else:
            one["default"] = _default(field)
        properties[field.name] = one
    found: Schema = {
        "title": kind.__name__,
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "properties": properties,
        "additionalProperties": False,
    }
    return found | ({"required": required} if required else {})


def _schema_of_field(field: dataclasses.Field[Any], hint: Any) -> Schema:
    one = schema_of_type(hint)
    if field.metadata.get("several"):
        one = {"anyOf": [one, {"type": "array", "items": dict(one)}]}
    mark = find_mark(hint)
    if mark is not None and mark is not Names.NOTHING:
        one["names"] = mark.value
    return one


def schema_of_type(hint: Any) -> Schema:
    """The JSON Schema of an annotation."""
    if hasattr(hint, "__metadata__"):
        return schema_of_type(hint.__origin__)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of_type(part) for part in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, list):
        return {"type": "array", "items": schema_of_type(arguments[0])}
    if origin in (dict, Mapping) or hint is dict:
        inner = schema_of_type(arguments[1]) if arguments and arguments[1] is not Any else True
        return {"type": "object", "additionalProperties": inner}
    if dataclasses.is_dataclass(hint):
        return dict(schema_of(hint))  # type: ignore[arg-type]
    if hint is type(None):
        return {"type": "null"}
    if hint is Any:
        return {}
    if hint is Path:
        return {"type": "string"}
    return {"type": PLAIN[hint]}


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if value is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
    if dataclasses.is_dataclass(value):
        return to_json(value)
    return list(value) if isinstance(value, tuple) else value

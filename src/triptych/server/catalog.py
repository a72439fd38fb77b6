"""Every request by the name of its route, and the texts in it by what they name. No torch.

The requests are those of the `SYSTEM` records, so a new system has its routes as soon as it is
listed there.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from triptych.given import DataName, Names
from triptych.systems import RECIPES, SYSTEMS

Lane = Literal["draw", "train", "data"]
"""Which worker carries out a job: one for each device, one for trainings, one for checks of data.
"""


@dataclass(frozen=True)
class CheckData:
    """Decode every picture of a source, count its content, and find what training would skip."""

    source: DataName
    """The source."""


@dataclass(frozen=True)
class Offered:
    """One kind of request."""

    name: str
    """As in `/api/text-to-image`."""
    kind: type
    title: str
    """Of its system."""
    lane: Lane
    serves: tuple[str, ...] = ()
    """Kinds of model that carry it out; none for trainings."""
    recipe: str = ""
    """Of a training."""
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of a training, the default first."""


def route_name(kind: type) -> str:
    """`text-to-image` for `TextToImage`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()


@cache
def offered_requests() -> dict[str, Offered]:
    """Every request by its name."""
    found = [
        Offered(route_name(kind), kind, system.title, "draw", system.serves)
        for system in SYSTEMS.values()
        for kind in system.requests.values()
    ]
    for recipe, system in RECIPES.items():
        presets = system.recipes[recipe]
        kind = type(next(iter(presets.values())))
        name = route_name(kind)
        found.append(Offered(name, kind, system.title, "train", recipe=recipe, presets=presets))
    found.append(Offered("check-data", CheckData, "data", "data"))
    return {one.name: one for one in found}


def find_mark(hint: Any) -> Names | None:
    """What the texts of a field name; None where it has none, such as a number or a choice.

    A text without a mark is treated as a file, which nobody may name.
    """
    marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Names)]
    if marks:
        return marks[0]
    if hint is str:
        return Names.FILE
    if hasattr(hint, "__metadata__"):
        return find_mark(hint.__origin__)
    inner = (find_mark(part) for part in get_args(hint) if isinstance(part, type) or get_args(part))
    return next((mark for mark in inner if mark is not None), None)


@cache
def typed_fields(kind: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """The fields of a request with their annotations."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind))


@dataclass(frozen=True)
class Text:
    """One text of a request."""

    place: str
    """Such as `training.data` or `labels[2]`."""
    names: Names
    value: str
    is_default: bool


Change = Callable[[Text], str]


def map_texts(request: Any, change: Change, place: str = "") -> Any:
    """The request with every text replaced by what `change` returns for it."""
    values: dict[str, Any] = {}
    kind: Any = type(request)
    for field, hint in typed_fields(kind):
        value = getattr(request, field.name)
        where = place + field.name
        if dataclasses.is_dataclass(value):
            new: Any = map_texts(value, change, where + ".")
        elif (mark := find_mark(hint)) is None or value is None:
            continue
        elif isinstance(value, tuple):
            known = value == field.default
            new = tuple(
                change(Text(f"{where}[{number}]", mark, one, known))
                for number, one in enumerate(value)
            )
        else:
            new = change(Text(where, mark, value, value == field.default))
        if new != value or new is not value:
            values[field.name] = new
    return dataclasses.replace(request, **values) if values else request


def list_texts(request: Any) -> Iterator[Text]:
    """Every text of a request."""
    found: list[Text] = []

    def note(text: Text) -> str:
        found.append(text)
        return text.value

    map_texts(request, note)
    yield from found

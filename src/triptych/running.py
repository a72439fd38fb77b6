"""Carries out any request: loads its model and calls the pipeline of its system. Reads the request
in the record of a picture.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from triptych import fields, loading, runtime
from triptych.given import InMemory, describe, is_lost, require_values
from triptych.systems import find_pipeline
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.stable_diffusion.inputs import given_latents
from triptych.systems.stable_diffusion.request import TextToImage
from triptych.systems.unclip.request import UnclipPictures
from triptych.vision.images import read_request
from triptych.vision.pixels import keep, read_named
from triptych.weights.loaded import CAST, Loaded, find_dtype

PICTURES = ("image", "mask", "second")
"""Fields of requests for pictures that are pictures themselves."""


def run(request: Any, loaded: Loaded | None = None) -> Iterator[Any]:
    """Carry out a request step by step; the last item is the complete result.

    `loaded` replaces the model that the request names.

    Raises:
        ValueError: not a request, or one that cannot be carried out.
    """
    system = find_pipeline(request)
    require_values(request)
    if loaded is not None and not isinstance(loaded, Loaded):
        raise ValueError(
            f"the model is what triptych.load returns, not {type(loaded).__name__}; a request also "
            "names one, with model=..."
        )
    if loaded is not None:
        _require_place(request, loaded)

    def load(name: str, device: torch.device | str = "cpu", dtype: str = "auto") -> Loaded:
        if loaded is not None and name == request.model:
            return loaded
        return loading.load(name, device, dtype)

    steps: Iterator[Any] = system.module("pipeline").run(request, load)
    return steps


def _require_place(request: Any, loaded: Loaded) -> None:
    """ValueError for a request that names another device or precision than the model has."""
    device, precision = (getattr(request, name, "auto") for name in ("device", "dtype"))
    if device == precision == "auto":
        return
    part = CAST.get(loaded.card.model, ("",))[0]  # whose precision may be another
    weight = next(loaded.model.get_submodule(part).parameters())
    if device != "auto" and runtime.device(device).type != weight.device.type:
        raise ValueError(
            f"the request names the device {device}, and the model is on {weight.device}: leave it "
            f"out, or move the model, loaded.to({device!r})"
        )
    if precision != "auto" and find_dtype(precision) != weight.dtype:
        raise ValueError(
            f"the request names the dtype {precision}, which is not the model's: leave it out, or "
            f"cast the model, loaded.to(precision={precision!r})"
        )


def recall(source: Any, **given: Any) -> Any:
    """The request that drew a picture file, or `source` if it is a request, ready to run again.

    `given` are fields of the request. One that was in memory must be the same again, by its
    digest; another, such as `model`, replaces what is recorded.

    Raises:
        ValueError: there is no record, something that was in memory is missing, or is another.
    """
    request = _read_record(source) if isinstance(source, str | os.PathLike) else source
    find_pipeline(request)
    names = [field.name for field in dataclasses.fields(request)]
    for name in given:
        if name not in names:
            near = fields.nearest(name, names)
            raise ValueError(f"{type(request).__name__} has no field {name!r}.{near}")
    complete = dataclasses.replace(request, **given)
    digests = read_digests(source)
    recorded = dataclasses.replace(request, **digests)
    there = [name for name in digests if os.path.isfile(getattr(complete, name))]
    for name in dict.fromkeys([*given, *there]):
        if others := list(changed_values(recorded, complete, name)):
            raise ValueError(f"{others[0]}. To use another, dataclasses.replace changes a request")
    require_values(complete)
    return complete


def read_digests(source: Any) -> dict[str, str]:
    """The pictures that were read from files for a picture file, named by their digests, by field;
    empty for everything else.
    """
    if not isinstance(source, str | os.PathLike) or not os.path.isfile(source):
        return {}
    found = (read_request(Path(source)) or {}).get("pictures")
    named = found if isinstance(found, dict) else {}
    return {name: text for name, text in named.items() if name in PICTURES and is_lost(text)}


def changed_values(before: Any, after: Any, name: str) -> Iterator[str]:
    """A sentence for each value of a field that was in memory for one request and is another in the
    next. Files are read for it.

    Raises:
        ValueError: a file cannot be read.
    """
    old, new = (_list(getattr(request, name)) for request in (before, after))
    lost = [is_lost(text) for text in old]
    if any(lost) and len(old) != len(new):
        yield f"{name}: the record has {len(old)}, not {len(new)}"
    for text, given, was_lost in zip(old, new, lost, strict=False):
        if was_lost and given and text != (named := _named(name, given)):
            yield (
                f"{name} is another than in the record, which has {describe(text)}; this one is "
                f"{describe(named)}"
            )


def _named(name: str, given: str) -> str:
    """The name of a value that is given as a file, or in memory already."""
    if is_lost(given) or isinstance(given, InMemory):
        return given
    if name == "latents":
        return given_latents.keep(given_latents.open_latents(given))
    return keep(name, read_named(name, given))


def _read_record(path: str | os.PathLike[str]) -> Any:
    """The request in a picture file."""
    found = read_request(Path(path))
    record = (found or {}).get("request")
    if not isinstance(record, dict):
        Path(path).stat()  # that there is no file is an error of its own
        raise ValueError(f"{os.fspath(path)!r} carries no request of Triptych")
    kind: type = TextToImage if "prompt" in record else ClassToImage
    if "prior" in record:
        kind = UnclipPictures
    return fields.from_json(kind, record, os.fspath(path))


def _list(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)

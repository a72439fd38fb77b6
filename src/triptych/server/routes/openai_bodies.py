"""Bodies of OpenAI's routes: JSON and forms, and the pictures in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from triptych.fields import from_json
from triptych.given import Words
from triptych.server.catalog import typed_fields
from triptych.server.routes.answers import Failure
from triptych.server.routes.library import open_form
from triptych.server.routes.own import read_json, to_failure
from triptych.server.service import Service

FILES = 17
"""Of a form: sixteen pictures and a mask."""


@dataclass(frozen=True)
class Images:
    """Pictures of a prompt, or of a picture and a prompt."""

    prompt: Words = ""
    """What to draw."""
    model: Words = ""
    """A model of `/v1/models`. Default: the first that draws."""
    n: int = 1
    """Number of pictures, 1 to 10."""
    size: Words = "auto"
    """WIDTHxHEIGHT in pixels, or auto."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """The pictures themselves, or where they are."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """Format of the pictures."""
    output_compression: int = 100
    """Quality of JPEG and WebP, 0 to 100."""
    quality: Words = "auto"
    """Not used: `num_inference_steps` says how long to draw."""
    background: Literal["auto", "opaque"] = "auto"
    """Pictures are opaque."""
    stream: bool = False
    """Answer with server-sent events."""
    partial_images: int = 0
    """With stream: how many previews to send before the picture, 0 to 3."""
    seed: int | None = None
    """Picture i uses seed + i."""
    negative_prompt: Words = ""
    """What to avoid."""
    num_inference_steps: int = 0
    """Steps of the sampler; 0 for the model's."""
    guidance_scale: float | None = None
    """Strength of guidance. Default: the model's."""
    scheduler: Words = ""
    """A sampler. Default: the model's."""
    strength: float | None = None
    """With a picture: how much of it is redrawn, above 0 to 1."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n", 1, 10),
            ("output_compression", 0, 100),
            ("partial_images", 0, 3),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {low} to {high}, not {getattr(self, name)}")


def read_fields(kind: Any, body: Any) -> Any:
    """The known fields of a body; null is as if it were not there.

    Raises:
        Failure: one has a value that cannot be followed.
    """
    if not isinstance(body, Mapping):
        raise Failure(400, "the body must be an object", code="invalid_value")
    known = {field.name for field, _ in typed_fields(kind)}
    try:
        return from_json(kind, {k: v for k, v in body.items() if k in known and v is not None})
    except ValueError as error:
        raise to_failure(error, kind) from None


async def read_picture_form(service: Service, request: Request) -> tuple[Images, dict[str, str]]:
    """The fields of a form, or of JSON with `images`, and the ids of its picture and mask."""
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await read_json(request)
        images = read_fields(Images, body)
        sent = body.get("images") or [body.get("image")]
        return images, await run_in_threadpool(_take_sent, service, sent, body.get("mask"))
    async with open_form(request, files=FILES) as form:
        values: dict[str, Any] = {}
        for field, hint in typed_fields(Images):
            if isinstance(given := form.get(field.name), str) and given:
                values[field.name] = read_number(given, hint)
        images = read_fields(Images, values)
        files = [one for name in ("image", "image[]") for one in form.getlist(name)]
        pictures = [await one.read() for one in files if isinstance(one, UploadFile)]
        mask = form.get("mask")
        masked = await mask.read() if isinstance(mask, UploadFile) else None
    return images, await run_in_threadpool(_store_sent, service, pictures, masked)


def read_number(text: str, hint: Any) -> Any:
    """The text of a form's field as its type; as it is where it is no number."""
    words = {"true": True, "false": False}
    kinds: dict[type, Callable[[str], Any]] = {int: int, float: float}
    kinds[bool] = lambda word: words[word.lower()]
    for kind, read in kinds.items():
        if hint is kind or kind in getattr(hint, "__args__", ()):
            try:
                return read(text)
            except (ValueError, KeyError):
                return text
    return text


def _take_sent(service: Service, sent: list[Any], mask: Any) -> dict[str, str]:
    """Pictures of a JSON body: data URLs in `image_url`, or ids in `file_id`."""
    from triptych.server.pictures import decode_base64

    def read(one: Any, place: str) -> bytes:
        value = one.get("image_url") or one.get("file_id") if isinstance(one, Mapping) else one
        if not isinstance(value, str):
            raise Failure(400, f"{place} is missing", param=place, code="invalid_value")
        try:
            if value.startswith(("data:", "http:", "https:", "file:")):
                return decode_base64(value, service.limits)
            return (service.places.home / service.files.file(value).path).read_bytes()
        except (ValueError, KeyError, OSError) as error:
            text = str(error) if isinstance(error, ValueError) else "there is no such picture"
            raise Failure(400, f"{place}: {text}", param=place, code="invalid_picture") from None

    pictures = [read(one, "image") for one in sent]
    return _store_sent(service, pictures, None if mask is None else read(mask, "mask"))


def _store_sent(service: Service, pictures: list[bytes], mask: bytes | None) -> dict[str, str]:
    from triptych.server.pictures import open_mask, store_pixels, store_upload

    if len(pictures) != 1:
        many = "image is missing" if not pictures else "only one image can be redrawn"
        raise Failure(400, many, param="image", code="invalid_value")
    place = "image"
    try:
        found = {
            "image": store_upload(pictures[0], service.files, service.places, service.limits).id
        }
        if mask is not None:
            place = "mask"
            pixels = open_mask(mask, service.limits)
            found["mask"] = store_pixels(pixels, service.files, service.places).id
    except ValueError as error:
        raise Failure(400, f"{place}: {error}", param=place, code="invalid_picture") from None
    return found

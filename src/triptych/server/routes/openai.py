"""The routes of OpenAI for models and pictures. Fields that are not known here are ignored, as
there; values that cannot be followed are refused.
"""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from triptych.server.catalog import Offered, offered_requests
from triptych.server.jobs.inputs import Refused
from triptych.server.jobs.store import Event, Job
from triptych.server.offers import Model
from triptych.server.routes.answers import Failure
from triptych.server.routes.errors import ERRORS
from triptych.server.routes.openai_bodies import Images, read_fields, read_picture_form
from triptych.server.routes.own import STREAM, client_of, read_json, to_failure
from triptych.server.routes.waiting import JobStream, end, follow, require_done, wait_for
from triptych.server.schema import schema_of
from triptych.server.service import Service

OWNER = "triptych"
DRAWING = "text-to-image"
COUNTED = {
    "total_tokens": 0, "input_tokens": 0, "output_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip
"""Clients read it; nothing is paid for, so nothing is counted."""


def routes(service: Service) -> APIRouter:
    """All routes below `/v1/`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)
    _add_models(router, service)
    _add_images(router, service)
    return router


def _add_models(router: APIRouter, service: Service) -> None:
    @router.get("/models", response_model=None)
    async def list_models() -> Response:
        """The models, and what each can do."""
        rows = [describe_model(model) for model in service.offers.models().values()]
        return JSONResponse({"object": "list", "data": rows})

    @router.get("/models/{name}", response_model=None)
    async def read_model(name: str) -> Response:
        """One model."""
        return JSONResponse(describe_model(find_model(service, name)))


def describe_model(model: Model) -> dict[str, Any]:
    """A model as OpenAI's clients read it; `capabilities` are the requests that it carries out."""
    can = [
        one.name for one in offered_requests().values() if model.kind and model.kind in one.serves
    ]
    return {
        "id": model.name, "object": "model", "created": model.created, "owned_by": OWNER,
        "capabilities": can,
    }  # fmt: skip


def find_model(service: Service, name: str) -> Model:
    """The model of a name.

    Raises:
        Failure: there is none.
    """
    try:
        return service.offers.find_model(name)
    except ValueError as error:
        raise Failure(
            404, str(error), kind="invalid_request_error", param="model", code="model_not_found"
        ) from None


def _add_images(router: APIRouter, service: Service) -> None:
    def describe(kind: str) -> dict[str, Any]:
        schema = schema_of(Images) | {"additionalProperties": True, "required": ["prompt"]}
        content: dict[str, Any] = {"application/json": {"schema": schema}}
        if kind != "generations":
            file = {"type": "string", "format": "binary"}
            fields = {"image": file, "mask": file, **schema["properties"]}
            required = ["image", "prompt"] if kind == "edits" else ["image"]
            form = {"type": "object", "properties": fields, "required": required}
            content = {"multipart/form-data": {"schema": form}}
        return {"requestBody": {"required": True, "content": content}}

    @router.post(
        "/images/generations",
        response_model=None,
        responses=STREAM,
        openapi_extra=describe("generations"),
    )
    async def generate(request: Request) -> Response:
        """Pictures of a prompt."""
        body = await read_json(request)
        images = read_fields(Images, body)
        if not images.prompt:
            raise Failure(400, "prompt is missing", param="prompt", code="invalid_value")
        return await draw(service, request, images, {}, "image_generation")

    @router.post(
        "/images/edits", response_model=None, responses=STREAM, openapi_extra=describe("edits")
    )
    async def edit(request: Request) -> Response:
        """A picture redrawn after a prompt; with a mask only where that is transparent."""
        images, pictures = await read_picture_form(service, request)
        if not images.prompt:
            raise Failure(400, "prompt is missing", param="prompt", code="invalid_value")
        return await draw(service, request, images, pictures, "image_edit")

    @router.post(
        "/images/variations",
        response_model=None,
        responses=STREAM,
        openapi_extra=describe("variations"),
    )
    async def vary(request: Request) -> Response:
        """Pictures like a picture."""
        images, pictures = await read_picture_form(service, request)
        return await draw(service, request, images, pictures, "image_generation")


async def draw(
    service: Service, request: Request, images: Images, pictures: dict[str, str], event: str
) -> Response:
    """Draw, and answer when it is done, or stream."""
    offered, body = to_request(service, images, pictures)
    job = submit(service, request, offered, body)
    if images.stream:
        events = stream(service, job, images, event)
        return JobStream(events, lambda: end(service, job))
    job = await wait_for(service, request, job)
    rows = [describe_picture(service, request, images, one) for one in made(job)]
    return JSONResponse({"created": int(time.time()), "data": rows} | facts_of(images, job))


def submit(service: Service, request: Request, offered: Offered, body: dict[str, Any]) -> Job:
    """A job that ends with this connection.

    Raises:
        Failure: the request is refused.
    """
    try:
        read = service.read(offered, body)
    except ValueError as error:
        raise rename_field(error, offered.kind) from None
    return service.submit(offered, read, client=client_of(request), attached=True)


OURS = {"steps": "num_inference_steps", "guidance": "guidance_scale", "sampler": "scheduler"}
OURS |= {"negative": "negative_prompt", "label": "prompt", "text": "input"}


def rename_field(error: ValueError, kind: type) -> Failure:
    """A refusal of our request about the field of OpenAI's."""
    failure = to_failure(error, kind)
    if isinstance(error, Refused) and error.place == "model":
        return Failure(404, failure.message, param="model", code="model_not_found")
    name = (failure.param or "").partition("[")[0]
    return Failure(400, failure.message, param=OURS.get(name, failure.param), code=failure.code)


def to_request(
    service: Service, images: Images, pictures: dict[str, str]
) -> tuple[Offered, dict[str, Any]]:
    """Our request for OpenAI's: a prompt; for a model of classes the name of one; for DALL-E 2 a
    prompt or a picture to vary.
    """
    requests = offered_requests()
    named = {"model": images.model} if images.model else {}
    kind = find_model(service, images.model).kind if images.model else ""
    shared = {
        "n": images.n, "seed": images.seed, "steps": images.num_inference_steps,
        "guidance": images.guidance_scale,
    }  # fmt: skip
    classes, unclip = requests["class-to-image"], requests["unclip-pictures"]
    if kind in classes.serves and kind:
        sampler = {"sampler": images.scheduler}
        return classes, {"label": images.prompt} | shared | sampler | pictures | named
    if kind in unclip.serves and kind:
        what = {"what": "variations"} if pictures else {"prompt": images.prompt}
        return unclip, what | shared | pictures | named
    body: dict[str, Any] = {
        "prompt": images.prompt, "negative": images.negative_prompt, "sampler": images.scheduler,
        "size": "" if images.size == "auto" else images.size,
    }  # fmt: skip
    strength = {"strength": images.strength} if pictures and images.strength is not None else {}
    return requests[DRAWING], body | shared | strength | pictures | named


def made(job: Job) -> list[dict[str, Any]]:
    """The pictures that a job has made."""
    result = job.result or {"pictures": []}
    return [one for one in result["pictures"] if one["kind"] == "made"]


def encode_picture(service: Service, images: Images, key: str) -> str:
    """A picture in the format that was asked for, in base64."""
    from triptych.server.pictures import encode

    path = service.places.home / service.files.file(key).path
    data = encode(path, images.output_format, images.output_compression)
    return base64.b64encode(data).decode()


def describe_picture(
    service: Service, request: Request, images: Images, picture: dict[str, Any]
) -> dict[str, Any]:
    shown = picture["facts"].get("prompt") or picture["facts"].get("shows")
    prompt = {"revised_prompt": shown}
    if images.response_format == "url":
        host = f"{request.scope['scheme']}://{request.headers['host']}"
        return {"url": host + picture["url"]} | prompt
    return {"b64_json": encode_picture(service, images, picture["id"])} | prompt


def facts_of(images: Images, job: Job) -> dict[str, Any]:
    """What an answer says of all its pictures."""
    first = next(iter(made(job)), None)
    size = f"{first['width']}x{first['height']}" if first else images.size
    return {
        "background": "opaque", "output_format": images.output_format, "quality": images.quality,
        "size": size,
    }  # fmt: skip


async def stream(service: Service, job: Job, images: Images, event: str) -> AsyncIterator[bytes]:
    """Previews and pictures as events, then `[DONE]`."""
    sent, previews = 0, 0
    async for one in follow(service, job):
        if one is None:
            yield KEEPALIVE_COMMENT
        elif one.kind == "preview" and is_due(one, previews, images.partial_images):
            facts = {"partial_image_index": previews, "b64_json": recode(one.data["url"], images)}
            yield encode_event(f"{event}.partial_image", images, facts)
            previews += 1
        elif one.kind == "picture" and one.data["kind"] == "made":
            encoded = await run_in_threadpool(encode_picture, service, images, one.data["id"])
            size = f"{one.data['width']}x{one.data['height']}"
            facts = {"b64_json": encoded, "size": size, "usage": COUNTED}
            yield encode_event(f"{event}.completed", images, facts)
            sent += 1
    try:
        require_done(service.jobs.job(job.id))
    except Failure as failure:
        error = {
            "message": failure.message,
            "type": failure.kind,
            "param": None,
            "code": failure.code,
        }
        yield format_sse_event(event="error", data_str=json.dumps({"error": error}))
    yield format_sse_event(data_str="[DONE]")


def is_due(event: Event, sent: int, wanted: int) -> bool:
    """Whether the next preview is sent: they are spread over the work."""
    return sent < wanted and float(event.data["done"]) >= sent / (wanted + 1)


def recode(url: str, images: Images) -> str:
    """A preview in the format that was asked for."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=["JPEG"]) as image:
        out = io.BytesIO()
        image.save(out, images.output_format.upper())
    return base64.b64encode(out.getvalue()).decode()


def encode_event(kind: str, images: Images, facts: dict[str, Any]) -> bytes:
    data = {
        "type": kind, "created_at": int(time.time()), "size": images.size,
        "quality": images.quality, "background": "opaque", "output_format": images.output_format,
    } | facts  # fmt: skip
    return format_sse_event(event=kind, data_str=json.dumps(data))

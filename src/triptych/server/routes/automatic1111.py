"""The routes of AUTOMATIC1111's web UI that programs use, with its samplers' conventions and its
noise, so that a seed draws what it draws there.

A setting that cannot be followed and would draw another picture is refused; one that hardly matters
is named in the `notes` of `info`.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from triptych.diffusion.names import SAMPLERS, SPACINGS, parse_sampler, parse_spacing
from triptych.given import Words
from triptych.server.catalog import offered_requests
from triptych.server.jobs.carry_out import describe_file
from triptych.server.jobs.store import Job
from triptych.server.offers import Model
from triptych.server.routes.answers import Failure
from triptych.server.routes.errors import AUTOMATIC1111_ERRORS
from triptych.server.routes.openai import find_model, made, submit
from triptych.server.routes.openai_bodies import read_fields
from triptych.server.routes.own import read_json
from triptych.server.routes.waiting import ClientLeft, wait_for
from triptych.server.schema import schema_of
from triptych.server.service import Service

DRAWING = "text-to-image"
REFUSED = ("enable_hr", "restore_faces", "script_name", "refiner_checkpoint", "seed_resize_from_h")
NOTED = {
    "styles": [], "mask_blur": 0, "inpaint_full_res": False, "s_churn": 0, "s_noise": 1,
    "s_min_uncond": 0, "s_tmin": 0, "s_tmax": 0, "resize_mode": 0, "initial_noise_multiplier": 1,
}  # fmt: skip
"""Settings that are not followed, by the value at which they do nothing."""


@dataclass(frozen=True)
class Draw:
    """Pictures of a prompt, with the settings of AUTOMATIC1111 that are followed."""

    prompt: Words = ""
    negative_prompt: Words = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    sampler_name: Words = ""
    sampler_index: Words = "Euler"
    scheduler: Words = ""
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    tiling: bool = False
    denoising_strength: float = 0.75
    override_settings: dict[str, Any] = field(default_factory=dict)
    send_images: bool = True
    init_images: tuple[Words, ...] = ()
    mask: Words = ""
    inpainting_mask_invert: int = 0


@dataclass(frozen=True)
class Options:
    """The options that exist here."""

    sd_model_checkpoint: Words = ""
    CLIP_stop_at_last_layers: int = 1


def routes(service: Service) -> APIRouter:
    """All routes below `/sdapi/v1/`."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], responses=AUTOMATIC1111_ERRORS)
    options: dict[str, Any] = {"sd_model_checkpoint": "", "CLIP_stop_at_last_layers": 1}
    _add_drawing(router, service, options)
    _add_lists(router, service)
    _add_options(router, service, options)
    _add_progress(router, service)
    return router


def _add_drawing(router: APIRouter, service: Service, options: dict[str, Any]) -> None:
    schema = schema_of(Draw) | {"additionalProperties": True}
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @router.post("/txt2img", response_model=None, openapi_extra=extra)
    async def draw_prompt(request: Request) -> Response:
        """Pictures of a prompt."""
        return await draw(service, request, options, from_picture=False)

    @router.post("/img2img", response_model=None, openapi_extra=extra)
    async def draw_picture(request: Request) -> Response:
        """Pictures of a prompt that start from a picture, with a mask only in its white parts."""
        return await draw(service, request, options, from_picture=True)

    @router.post("/png-info", response_model=None, openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {
            "type": "object", "required": ["image"], "properties": {"image": {"type": "string"}},
        }}}}
    })  # fmt: skip
    async def read_png(request: Request) -> Response:
        """The parameters in a picture."""
        body = await read_json(request)
        image = body.get("image") if isinstance(body, Mapping) else None
        if not isinstance(image, str):
            raise Failure(400, "image is missing: a picture in base64", param="image")
        return JSONResponse(await run_in_threadpool(read_parameters_of, service, image))


def read_parameters_of(service: Service, image: str) -> dict[str, Any]:
    """The text of a picture, and its settings by name."""
    from triptych.server.pictures import decode_base64, open_upload
    from triptych.systems.stable_diffusion.inputs.parameters_text import parse_infotext
    from triptych.vision.images import read_parameters

    try:
        data = decode_base64(image, service.limits)
        open_upload(data, service.limits)
        text = read_parameters(data) or ""
        info = parse_infotext(text)
    except ValueError as error:
        raise Failure(400, f"image: {error}", param="image") from None
    parameters = {"Prompt": info.prompt, "Negative prompt": info.negative} | dict(info.pairs)
    return {"info": text, "items": {"parameters": text}, "parameters": parameters if text else {}}


async def draw(
    service: Service, request: Request, options: dict[str, Any], from_picture: bool
) -> Response:
    """Draw and answer; what was drawn before somebody interrupted it is an answer, too."""
    body = await read_json(request)
    asked = read_fields(Draw, body)
    notes = check_settings(body)
    pictures = await run_in_threadpool(store_pictures, service, asked) if from_picture else {}
    job = submit(
        service, request, offered_requests()[DRAWING], to_request(service, asked, options, pictures)
    )
    try:
        job = await wait_for(service, request, job)
    except ClientLeft:
        raise
    except Failure as failure:
        if failure.code != "cancelled":
            raise
        job = service.jobs.job(job.id)
    return JSONResponse(await run_in_threadpool(describe, service, asked, body, job, notes))


def check_settings(body: Mapping[str, Any]) -> list[str]:
    """Notes on settings that are not followed.

    Raises:
        Failure: one would draw another picture.
    """
    for name in REFUSED:
        if body.get(name) not in (None, False, "", 0, "None"):
            raise Failure(400, f"{name} is not supported: leave it out", param=name)
    scripts = body.get("alwayson_scripts") or {}
    for name, script in scripts.items() if isinstance(scripts, Mapping) else ():
        arguments = script.get("args") if isinstance(script, Mapping) else script
        if arguments not in (None, [], [False]):
            raise Failure(400, f"the script {name[:60]!r} is not supported: leave it out")
    unfollowed = [name for name, off in NOTED.items() if body.get(name) not in (None, off)]
    if body.get("mask") and body.get("inpainting_fill") not in (None, 1):  # 1: what is there
        unfollowed.append("inpainting_fill")
    if body.get("eta") not in (None, usual_eta(body)):
        unfollowed.append("eta")
    options = {field.name for field in fields(Options)}
    unfollowed += [name for name in body.get("override_settings") or {} if name not in options]
    return [f"{name[:60]} is not followed" for name in unfollowed]


def usual_eta(body: Mapping[str, Any]) -> float | None:
    """The eta that a sampler has anyway; one that does not scale its noise reads none."""
    try:
        sampler = parse_sampler(str(body.get("sampler_name") or body.get("sampler_index") or ""))[0]
    except ValueError:
        return None
    if sampler == "ddim":
        return 0.0
    return 1.0 if SAMPLERS[sampler].noise == "scaled" else body.get("eta")


def store_pictures(service: Service, asked: Draw) -> dict[str, str]:
    """The ids of the picture to start from and of its mask."""
    from triptych.server.pictures import decode_base64, open_upload, store_pixels

    if len(asked.init_images) != 1:
        raise Failure(400, "init_images is one picture in base64", param="init_images")
    found = {}
    for name, text in (("image", asked.init_images[0]), ("mask", asked.mask)):
        if not text:
            continue
        place = "init_images" if name == "image" else name
        try:
            pixels = open_upload(decode_base64(text, service.limits), service.limits)
        except ValueError as error:
            raise Failure(400, f"{place}: {error}", param=place) from None
        if name == "mask" and asked.inpainting_mask_invert:
            pixels = 255 - pixels
        found[name] = store_pixels(pixels, service.files, service.places).id
    return found


def to_request(
    service: Service, asked: Draw, options: dict[str, Any], pictures: dict[str, str]
) -> dict[str, Any]:
    """Our request for AUTOMATIC1111's."""
    overridden = read_options(service, asked.override_settings)
    model = overridden.get("sd_model_checkpoint") or options["sd_model_checkpoint"]
    skip = overridden.get("CLIP_stop_at_last_layers", options["CLIP_stop_at_last_layers"])
    try:
        sampler, spacing = parse_sampler(asked.sampler_name or asked.sampler_index)
        if asked.scheduler and asked.scheduler.lower() != "automatic":
            spacing = parse_spacing(asked.scheduler)
    except ValueError as error:
        raise Failure(400, str(error), param="sampler_name") from None
    varied = {"variation_strength": asked.subseed_strength} if asked.subseed_strength else {}
    if varied and asked.subseed >= 0:
        varied["variation_seed"] = asked.subseed
    if pictures:
        varied["strength"] = asked.denoising_strength
    return {
        "prompt": asked.prompt, "negative": asked.negative_prompt, "sampler": sampler,
        "spacing": spacing, "n": asked.batch_size * asked.n_iter, "steps": asked.steps,
        "guidance": asked.cfg_scale, "size": f"{asked.width}x{asked.height}",
        "seed": asked.seed if asked.seed >= 0 else None, "tiling": asked.tiling,
        "clip_skip": skip if skip > 1 else 0, "conventions": "automatic1111",
        "noise_source": "philox", **varied, **pictures, **({"model": model} if model else {}),
    }  # fmt: skip


def describe(
    service: Service, asked: Draw, body: dict[str, Any], job: Job, notes: list[str]
) -> dict[str, Any]:
    """Pictures in base64, what was asked for, and `info`: JSON in a text, as clients expect."""
    from triptych.vision.images import read_parameters

    pictures = made(job)
    paths = [service.places.home / service.files.file(one["id"]).path for one in pictures]
    data = [path.read_bytes() for path in paths]
    result = job.result or {"values": {}}
    filled = result["values"].get("request", job.request)
    seeds = [one["facts"]["seed"] for one in pictures]
    subseeds = [one["facts"].get("variation_seed", -1) for one in pictures]
    info = {
        "prompt": asked.prompt, "all_prompts": [asked.prompt] * len(pictures),
        "negative_prompt": asked.negative_prompt,
        "all_negative_prompts": [asked.negative_prompt] * len(pictures),
        "seed": seeds[0] if seeds else -1, "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else -1, "all_subseeds": subseeds,
        "subseed_strength": asked.subseed_strength, "width": asked.width, "height": asked.height,
        "sampler_name": asked.sampler_name or asked.sampler_index, "cfg_scale": asked.cfg_scale,
        "steps": asked.steps, "batch_size": asked.batch_size, "restore_faces": False,
        "sd_model_name": filled["model"], "styles": [], "clip_skip": max(1, filled["clip_skip"]),
        "infotexts": [read_parameters(one) for one in data],
        "notes": [*notes, *result["values"].get("notes", [])],
    }  # fmt: skip
    sent = [base64.b64encode(one).decode() for one in data] if asked.send_images else []
    kept = {name: value for name, value in body.items() if name not in ("init_images", "mask")}
    return {"images": sent, "parameters": kept, "info": json.dumps(info)}


def _add_lists(router: APIRouter, service: Service) -> None:
    @router.get("/samplers", response_model=None)
    async def list_samplers() -> Response:
        """The samplers that AUTOMATIC1111 has, too."""
        rows = [
            {"name": one.aliases[0], "aliases": [one.name], "options": {}}
            for one in SAMPLERS.values()
            if one.automatic1111
        ]
        return JSONResponse(rows)

    @router.get("/schedulers", response_model=None)
    async def list_schedulers() -> Response:
        """Spacings of the steps."""
        named = {"automatic": "Automatic"} | {
            name: label for name, label in SPACINGS.items() if label
        }
        other = {"aliases": None, "default_rho": -1, "need_inner_model": False}
        rows = [{"name": name, "label": label} | other for name, label in named.items()]
        return JSONResponse(rows)

    @router.get("/sd-models", response_model=None)
    async def list_models() -> Response:
        """The models that draw prompts."""
        fitting = service.offers.fitting_models(offered_requests()[DRAWING].serves)
        return JSONResponse([describe_checkpoint(model) for model in fitting])

    @router.get("/loras", response_model=None)
    async def list_loras() -> Response:
        """The LoRAs that a prompt may name, as in `<lora:NAME:0.8>`."""
        rows = [
            {"name": name, "alias": name, "path": path.name, "metadata": {}}
            for name, path in service.offers.loras().items()
        ]
        return JSONResponse(rows)


def describe_checkpoint(model: Model) -> dict[str, Any]:
    return {
        "title": model.name, "model_name": model.name, "hash": None, "sha256": None,
        "filename": model.name, "config": None,
    }  # fmt: skip


def _add_options(router: APIRouter, service: Service, options: dict[str, Any]) -> None:
    schema = schema_of(Options) | {"additionalProperties": True}
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @router.get("/options", response_model=None)
    async def read() -> Response:
        """The model that draws where a request names none, and clip skip."""
        fitting = service.offers.fitting_models(offered_requests()[DRAWING].serves)
        first = fitting[0].name if fitting else ""
        return JSONResponse(
            options | {"sd_model_checkpoint": options["sd_model_checkpoint"] or first}
        )

    @router.post("/options", response_model=None, openapi_extra=extra)
    async def write(request: Request) -> Response:
        """Choose the model of the requests that follow; other options are ignored."""
        body = await read_json(request)
        options.update(read_options(service, body))
        return JSONResponse(None)


def read_options(service: Service, body: Any) -> dict[str, Any]:
    """The options of a body that exist here.

    Raises:
        Failure: there is no such model.
    """
    asked = read_fields(Options, body)
    given = {name: getattr(asked, name) for name in body if hasattr(asked, name) and body[name]}
    if name := given.get("sd_model_checkpoint"):
        find_model(service, name)
    return given


def _add_progress(router: APIRouter, service: Service) -> None:
    def running() -> Job | None:
        jobs = [
            job for job in service.jobs.queue() if job.lane == "draw" and job.state != "waiting"
        ]
        return jobs[0] if jobs else None

    @router.get("/progress", response_model=None)
    async def read_progress() -> Response:
        """How far the picture that is being drawn is, whoever asked for it."""
        service.feed.note_look()
        job = running()
        events = service.jobs.events(0, job.id) if job else []
        progress = next((one.data for one in events[::-1] if one.kind == "progress"), {})
        preview = [
            event.data["url"].partition(",")[2] for event in events if event.kind == "preview"
        ]
        pictures = [describe_file(file) for file in service.files.files_of(job.id)] if job else []
        state = {
            "skipped": False, "interrupted": bool(job and job.state == "cancelling"),
            "job": job.id if job else "", "job_count": int(job is not None),
            "job_no": len(pictures), "job_timestamp": "", "sampling_step": progress.get("taken", 0),
            "sampling_steps": job.request.get("steps", 0) if job else 0,
        }  # fmt: skip
        return JSONResponse({
            "progress": progress.get("done", 0.0), "eta_relative": 0.0, "state": state,
            "current_image": preview[-1] if preview else None, "textinfo": None,
        })  # fmt: skip

    @router.post("/interrupt", response_model=None)
    async def interrupt() -> Response:
        """Stop the picture that is being drawn; what is ready is answered."""
        if job := running():
            service.workers.cancel(job.id)
        return JSONResponse({})

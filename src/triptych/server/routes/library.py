"""Pictures, models and data: uploads, files by id, results found again, what may be named."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from triptych.diffusion.names import SAMPLERS, SPACINGS
from triptych.server.jobs.carry_out import describe_file
from triptych.server.jobs.files import File
from triptych.server.offers import Model
from triptych.server.routes.answers import Failure, Picture, not_found
from triptych.server.routes.errors import ERRORS
from triptych.server.routes.own import Limit, Number
from triptych.server.service import Service

BINARY = {"schema": {"type": "string", "format": "binary"}}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": BINARY}}}
ONE_FILE = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        }
    },
}
MANY_FILES = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "title": {"type": "string"},
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
            }
        }
    },
}
PLAIN = re.compile(r"[^\w .-]+")
MAX_CAPTION = 64 << 10
"""Bytes of a caption beside an uploaded picture."""


@asynccontextmanager
async def open_form(request: Request, files: int, fields: int = 64) -> AsyncIterator[FormData]:
    """The form of a body; its files are there within the block.

    Raises:
        Failure: it is none, or has too many parts.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Failure(415, "the body is a form: multipart/form-data", code="content_type")
    try:
        form = await request.form(max_files=files, max_fields=fields)
    except Exception as error:
        if type(error).__module__.startswith("triptych"):
            raise
        raise Failure(
            400,
            f"the form cannot be read: at most {files} files and {fields} fields",
            code="invalid_form",
        ) from None
    try:
        yield form
    finally:
        await form.close()


def routes(service: Service) -> APIRouter:
    """The routes below `/api/` that are about pictures, models and data."""
    router = APIRouter(prefix="/api", responses=ERRORS)
    _add_uploads(router, service)
    _add_files(router, service)
    _add_offers(router, service)
    _add_data_sets(router, service)
    return router


def _add_uploads(router: APIRouter, service: Service) -> None:
    @router.post(
        "/uploads", tags=["pictures"], status_code=201, response_model=None,
        responses={201: {"model": Picture}}, openapi_extra={"requestBody": ONE_FILE},
    )  # fmt: skip
    async def upload(request: Request) -> Response:
        """Store a picture, stripped of everything but its pixels. The answer has its id, and the
        request that the file says it was made with.
        """
        async with open_form(request, files=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                missing = "file is missing: the picture"
                raise Failure(400, missing, param="file", code="invalid_value")
            data = await file.read(service.limits.picture_bytes + 1)
        try:
            return JSONResponse(await run_in_threadpool(_store, service, data), 201)
        except ValueError as error:
            raise Failure(400, f"file: {error}", param="file", code="invalid_picture") from None


def _store(service: Service, data: bytes) -> dict[str, Any]:
    from triptych.server.pictures import store_upload
    from triptych.server.recipe_of import request_of_picture

    recorded = request_of_picture(data)
    file = store_upload(data, service.files, service.places, service.limits)
    return describe_file(file) | {"request": recorded}


def _add_files(router: APIRouter, service: Service) -> None:
    def find(key: str) -> File:
        try:
            return service.files.file(key)
        except KeyError:
            raise not_found("picture") from None

    @router.get("/files/{key}", tags=["pictures"], responses=PNG, response_model=None)
    async def read_file(key: str) -> Response:
        """A picture, as PNG."""
        path = service.places.home / find(key).path
        if not path.is_file():
            raise not_found("picture")
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        return FileResponse(path, media_type="image/png", headers=headers)

    @router.delete("/files/{key}", tags=["pictures"], status_code=204, response_model=None)
    async def delete_file(key: str) -> Response:
        """Delete one picture."""
        file = find(key)
        service.files.forget_file(key)
        (service.places.home / file.path).unlink(missing_ok=True)
        if file.job:
            service.jobs.forget_picture(file.job, key)
            service.feed.notify()
        return Response(status_code=204)

    @router.get(
        "/results", tags=["results"], responses={200: {"model": list[Picture]}}, response_model=None
    )
    async def list_results(
        words: Annotated[str, Query(max_length=1000)] = "",
        before: Number = 1 << 62,
        limit: Limit = 100,
    ) -> Response:
        """Pictures that were made, the newest first; with all of these words in prompt or label.
        `before` is the `number` of the last picture of the page before.
        """
        files = service.files.results(words, before, limit)
        return JSONResponse([describe_file(file) | {"number": file.number} for file in files])


def _add_offers(router: APIRouter, service: Service) -> None:
    @router.get("/models", tags=["service"], response_model=None)
    async def list_models() -> Response:
        """The models that may be named: what each draws with where a request leaves it open, its
        classes, and whether it is in memory.
        """
        loaded = service.models.sizes()
        return JSONResponse([_describe_model(m, loaded) for m in service.offers.models().values()])

    @router.get("/loras", tags=["service"], response_model=None)
    async def list_loras() -> Response:
        """The LoRAs that may be named."""
        return JSONResponse([{"name": name} for name in service.offers.loras()])

    @router.get("/samplers", tags=["service"], response_model=None)
    async def list_samplers() -> Response:
        """Samplers with their aliases and cost, and spacings of their steps."""
        samplers = [
            {
                "name": one.name,
                "aliases": list(one.aliases),
                "calls": one.calls,
                "order": one.order,
                "noise": one.noise,
            }
            for one in SAMPLERS.values()
        ]
        spacings = [{"name": name, "label": label or name} for name, label in SPACINGS.items()]
        return JSONResponse({"samplers": samplers, "spacings": spacings})


def _describe_model(model: Model, loaded: dict[str, int]) -> dict[str, Any]:
    about = model.about
    return {
        "name": model.name, "kind": model.kind or None, "created": model.created,
        "bytes_loaded": loaded.get(model.place), "defaults": dict(about.defaults),
        "labels": list(about.classes), "attributes": list(about.attributes),
        "columns": list(about.columns), "ideas": list(about.ideas),
    }  # fmt: skip


def _add_data_sets(router: APIRouter, service: Service) -> None:
    @router.get("/data", tags=["data"], response_model=None)
    async def list_data() -> Response:
        """The sources of pictures that may be named."""
        sets = service.files.data_sets()
        rows = [{"name": name, **sets.get(name, {})} for name in service.offers.data()]
        return JSONResponse(rows)

    @router.post(
        "/data-sets", tags=["data"], status_code=201, response_model=None,
        openapi_extra={"requestBody": MANY_FILES},
    )  # fmt: skip
    async def make_data_set(request: Request) -> Response:
        """A new data set of pictures; folders in their names are classes, and a text of the same
        name is the caption. Its id is a source of data.
        """
        async with open_form(request, files=service.limits.files_per_upload) as form:
            title = str(form.get("title") or "pictures")[:200]
            key = service.files.add_data_set(title)
            answer = await _add_pictures(service, key, form)
        return JSONResponse({"name": key, "title": title} | answer, 201)

    @router.post(
        "/data-sets/{key}/pictures", tags=["data"], status_code=201, response_model=None,
        openapi_extra={"requestBody": MANY_FILES},
    )  # fmt: skip
    async def extend_data_set(request: Request, key: str) -> Response:
        """Add pictures to a data set."""
        if key not in service.files.data_sets():
            raise not_found("data set")
        async with open_form(request, files=service.limits.files_per_upload) as form:
            return JSONResponse({"name": key} | await _add_pictures(service, key, form), 201)

    @router.delete("/data-sets/{key}", tags=["data"], status_code=204, response_model=None)
    async def delete_data_set(key: str) -> Response:
        """Delete a data set and its pictures."""
        if key not in service.files.data_sets():
            raise not_found("data set")
        service.files.forget_data_set(key)
        await run_in_threadpool(shutil.rmtree, service.places.data / key, True)
        return Response(status_code=204)


async def _add_pictures(service: Service, key: str, form: FormData) -> dict[str, Any]:
    """Store the files of a form; those that cannot be used are named with the reason."""
    skipped: dict[str, str] = {}
    for part in form.getlist("files"):
        if isinstance(part, UploadFile):
            data = await part.read(service.limits.picture_bytes + 1)
            name = part.filename or "picture"
            if reason := await run_in_threadpool(_add_one, service, key, name, data):
                skipped[name[:200]] = reason
    folder = service.places.data / key
    count = len(list(folder.rglob("*.png"))) if folder.is_dir() else 0
    service.files.count_pictures(key, count)
    return {"pictures": count, "skipped": skipped}


def _add_one(service: Service, key: str, name: str, data: bytes) -> str:
    """Store a picture, or the caption of one; returns the reason why it cannot be used."""
    from triptych.server.pictures import open_upload
    from triptych.vision.images import save_picture

    parts = [plain for part in PurePath(name.replace("\\", "/")).parts if (plain := _plain(part))]
    if not parts:
        return "has no name"
    folder = service.places.data / key
    if len(parts) > 1:
        folder = folder / parts[-2]  # the class
    folder.mkdir(parents=True, exist_ok=True)
    stem = PurePath(parts[-1]).stem or "picture"
    if parts[-1].lower().endswith(".txt"):
        if len(data) > MAX_CAPTION:
            return f"a caption of more than {MAX_CAPTION:,} bytes"
        (folder / f"{stem}.txt").write_text(data.decode("utf-8", "replace"), encoding="utf-8")
        return ""
    try:
        pixels = open_upload(data, service.limits)
    except ValueError as error:
        return str(error)
    save_picture(folder / f"{stem}.png", pixels)
    return ""


def _plain(part: str) -> str:
    """A part of a file name as a plain name, never hidden and never a way up."""
    return PLAIN.sub("-", part).strip(". ")[:80]

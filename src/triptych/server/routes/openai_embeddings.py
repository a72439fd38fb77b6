"""OpenAI's route for embeddings."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from triptych.given import Words
from triptych.server.catalog import offered_requests
from triptych.server.routes.answers import Failure
from triptych.server.routes.errors import ERRORS
from triptych.server.routes.openai import find_model, submit
from triptych.server.routes.openai_bodies import read_fields
from triptych.server.routes.own import read_json
from triptych.server.routes.waiting import wait_for
from triptych.server.schema import schema_of
from triptych.server.service import Service

READING = "embed"
INPUT = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "A text, or several.",
}


@dataclass(frozen=True)
class Embeddings:
    """Vectors of texts."""

    model: Words = ""
    """A model of `/v1/models`. Default: the first that embeds."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or little-endian float32 in base64."""
    dimensions: int | None = None
    """Only the model's own number."""


def routes(service: Service) -> APIRouter:
    """`/v1/embeddings`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)
    schema = schema_of(Embeddings) | {"additionalProperties": True, "required": ["input"]}
    schema["properties"] = {"input": INPUT, **schema["properties"]}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    @router.post("/embeddings", response_model=None, openapi_extra={"requestBody": body})
    async def embed(request: Request) -> Response:
        """Vectors of texts, of unit length."""
        sent = await read_json(request)
        texts = sent.get("input") if isinstance(sent, Mapping) else None
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise Failure(
                400, "input is a text or a list of texts (lists of tokens are not read)",
                param="input", code="invalid_value",
            )  # fmt: skip
        options = read_fields(Embeddings, sent)
        named = {"model": find_model(service, options.model).name} if options.model else {}
        job = submit(service, request, offered_requests()[READING], {"text": texts} | named)
        job = await wait_for(service, request, job)
        assert job.result is not None
        return JSONResponse(describe_vectors(job.result["values"], options))

    return router


def describe_vectors(values: dict[str, Any], options: Embeddings) -> dict[str, Any]:
    """The answer; a text that the model would cut is an error.

    Raises:
        Failure: a text is too long, or another number of dimensions is asked for.
    """
    rows = []
    for number, row in enumerate(values["rows"]):
        if row.get("cut"):
            lost = row["cut"][:60]
            raise Failure(
                400, f"input[{number}] is too long for this model, which would ignore {lost!r}",
                param="input", code="context_length_exceeded",
            )  # fmt: skip
        vector = row["embedding"]
        if options.dimensions not in (None, len(vector)):
            raise Failure(
                400, f"this model has {len(vector)} dimensions, not {options.dimensions}",
                param="dimensions", code="invalid_value",
            )  # fmt: skip
        encoded = vector
        if options.encoding_format == "base64":
            encoded = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        rows.append({"object": "embedding", "index": number, "embedding": encoded})
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return {"object": "list", "data": rows, "model": values["model"], "usage": usage}

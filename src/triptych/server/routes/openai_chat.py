"""OpenAI's route for chats: a language model, or one that answers about a picture."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from triptych.given import Words
from triptych.server.catalog import offered_requests
from triptych.server.jobs.store import Job
from triptych.server.routes.answers import Failure
from triptych.server.routes.errors import ERRORS
from triptych.server.routes.openai import find_model, submit
from triptych.server.routes.openai_bodies import read_fields
from triptych.server.routes.own import STREAM, read_json
from triptych.server.routes.waiting import JobStream, end, follow, require_done, wait_for
from triptych.server.schema import schema_of
from triptych.server.service import Service

MESSAGES = {
    "type": "array", "items": {"type": "object"}, "description": "Each with `role` and `content`.",
}  # fmt: skip


@dataclass(frozen=True)
class Completion:
    """An answer to the last message of a chat."""

    model: Words = ""
    """A model of `/v1/models`. Default: the first that chats, or with a picture sees."""
    stream: bool = False
    """Answer with server-sent events, as it is written."""
    temperature: float | None = None
    """0 takes the most likely token each time."""
    top_p: float | None = None
    """Draws from the fewest tokens that have this probability together."""
    max_tokens: int | None = None
    """The most tokens of the answer."""
    max_completion_tokens: int | None = None
    """The same, by its newer name."""
    seed: int | None = None
    """Of the draws."""
    n: int = 1
    """One answer."""

    def __post_init__(self) -> None:
        if self.n != 1:
            raise ValueError(f"n is 1, not {self.n}: ask again for another answer")


def routes(service: Service) -> APIRouter:
    """`/v1/chat/completions`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)
    schema = schema_of(Completion) | {"additionalProperties": True, "required": ["messages"]}
    schema["properties"] = {"messages": MESSAGES, **schema["properties"]}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    extra = {"requestBody": body}

    @router.post("/chat/completions", response_model=None, responses=STREAM, openapi_extra=extra)
    async def complete(request: Request) -> Response:
        """An answer to the last message of a chat, with a picture in it or without."""
        sent = await read_json(request)
        options = read_fields(Completion, sent)
        name, asked = to_request(sent, options)
        if options.model:
            asked["model"] = find_model(service, options.model).name
        job = submit(service, request, offered_requests()[name], asked)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        head |= {"model": job.request["model"]}
        if options.stream:
            usage = bool((sent.get("stream_options") or {}).get("include_usage"))
            return JobStream(stream(service, job, head, usage), lambda: end(service, job))
        job = await wait_for(service, request, job)
        assert job.result is not None
        values = job.result["values"]
        message = {"role": "assistant", "content": values["text"], "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason_of(values)}
        choices = {"choices": [choice | {"logprobs": None}], "usage": usage_of(values)}
        return JSONResponse(head | {"object": "chat.completion"} | choices)

    return router


def to_request(sent: Mapping[str, Any], options: Completion) -> tuple[str, dict[str, Any]]:
    """The name of our request, and its body.

    Raises:
        Failure: the messages are not those of a chat.
    """
    messages = sent.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refused("messages is a list of at least one")
    read = [read_message(message) for message in messages]
    system = "\n\n".join(text for role, text, _ in read if role in ("system", "developer"))
    turns = [one for one in read if one[0] in ("user", "assistant")]
    roles = ["assistant" if place % 2 else "user" for place in range(len(turns))]
    if not len(turns) % 2 or [role for role, _, _ in turns] != roles:
        raise refused("messages alternate between user and assistant, and the last is the user's")
    decoding = {
        "temperature": options.temperature, "top_p": options.top_p, "seed": options.seed,
        "max_tokens": options.max_completion_tokens or options.max_tokens,
        "stop": [stop] if isinstance(stop := sent.get("stop"), str) else stop,
    }  # fmt: skip
    given = {"decoding": {name: value for name, value in decoding.items() if value is not None}}
    pictures = [picture for *_, many in turns for picture in many]
    text = turns[-1][1]
    if not pictures:
        earlier = [text for _, text, _ in turns[:-1]]
        return "chat", given | {"message": text, "system": system, "turns": earlier}
    if len(pictures) > 1 or len(turns) > 1 or system:
        raise refused("a question about a picture is one message with one picture")
    if text.strip():
        return "ask", given | {"picture": pictures[0], "question": text}
    return "ask", given | {"picture": pictures[0], "task": "caption"}


def read_message(message: Any) -> tuple[str, str, list[str]]:
    """The role, text and pictures of a message.

    Raises:
        Failure: it is none, or has a part of another kind.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise refused("a message has a role and a content")
    content = message.get("content")
    if isinstance(content, str):
        return message["role"], content, []
    texts, pictures = [], []
    for given in content if isinstance(content, list) else [None]:
        part: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(url := _url_of(part), str):
            pictures.append(url)
        else:
            raise refused("the content of a message is a text, or parts of text and image_url")
    return message["role"], "\n".join(texts), pictures


def _url_of(part: Mapping[str, Any]) -> Any:
    """The address of a picture, which is in an object or stands alone."""
    value = part.get("image_url")
    return value.get("url") if isinstance(value, Mapping) else value


def refused(sentence: str) -> Failure:
    return Failure(400, sentence, param="messages", code="invalid_value")


def reason_of(values: Mapping[str, Any]) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if values["reason"] == "limit" else "stop"


def usage_of(values: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that were read and written."""
    read, written = values["prompt_tokens"], len(values["tokens"])
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def stream(
    service: Service, job: Job, head: dict[str, Any], usage: bool
) -> AsyncIterator[bytes]:
    """The answer in parts as it is written, why it ended, the tokens if asked for, `[DONE]`."""

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return encode({"choices": [choice]})

    def encode(data: dict[str, Any]) -> bytes:
        whole = head | {"object": "chat.completion.chunk"} | data
        return format_sse_event(data_str=json.dumps(whole))

    sent = 0
    yield chunk({"role": "assistant", "content": ""})
    async for event in follow(service, job):
        if event is None:
            yield KEEPALIVE_COMMENT
        elif event.kind == "text":
            sent += len(event.data["new"])
            yield chunk({"content": event.data["new"]})
    try:
        done = require_done(service.jobs.job(job.id))
        assert done.result is not None
        values = done.result["values"]
        if rest := values["text"][sent:]:  # events of an ended job are forgotten, its result is not
            yield chunk({"content": rest})
        yield chunk({}, reason_of(values))
        if usage:
            yield encode({"choices": [], "usage": usage_of(values)})
    except Failure as failure:
        error = {"message": failure.message, "type": failure.kind, "param": None}
        yield format_sse_event(data_str=json.dumps({"error": error | {"code": failure.code}}))
    yield format_sse_event(data_str="[DONE]")

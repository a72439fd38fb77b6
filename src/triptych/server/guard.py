"""Who may call: pure ASGI, so that a client that leaves is noticed through all of it.

Decisions are made on the raw path and headers of the connection, never on a URL that is put
together from them, and headers of proxies are not read.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from triptych.server.routes.answers import error_body
from triptych.server.settings import Limits, Serve, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = ("/", "/healthz", "/readyz", "/api/session", "/favicon.ico")
"""Paths without a key, and below `/assets/`: nothing of a user is in them."""
COOKIE = "triptych_session"
SAFE = ("GET", "HEAD", "OPTIONS")
FORMS = ("/v1/images/edits", "/v1/images/variations", "/api/uploads", "/api/data-sets")
"""Where a body is a form (the first two take JSON, too)."""
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(eq=False)
class Refusal(Exception):
    """Why a call is not let in."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None


def key_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def session_token(key: str) -> str:
    """What the cookie of a page holds: shows that it knew the key, and is not the key."""
    return hmac.new(key_digest(key), b"triptych session", hashlib.sha256).hexdigest()


class Guard:
    """Lets a call in or answers it; puts safe headers on every answer."""

    def __init__(self, app: Asgi, settings: Serve, limits: Limits, port: Callable[[], int]):
        self.app, self.settings, self.limits, self.port = app, settings, limits, port
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # there are no web sockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = read_headers(scope["headers"])
        origin = headers.get("origin", "")
        answer = self._add_headers(send, scope["path"], origin)
        try:
            self._check_host(headers)
            self._check_origin(scope["method"], headers)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                return await self._answer_preflight(answer)
            self._check_key(scope["path"], headers)
            self._check_body(scope, headers)
            if self.open >= self.limits.connections and scope["path"] not in PUBLIC:
                raise Refusal(
                    503, "too many requests at once: try again later", "server_error", "busy"
                )
        except Refusal as refusal:
            await answer_refusal(refusal, scope["path"], answer)
            return None
        self.open += 1
        try:
            await self.app(scope, self._limit(receive), answer)
        finally:
            self.open -= 1
        return None

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not name:
            name, port = host, ""
        names = {"127.0.0.1", "localhost", "[::1]", *self.settings.allow_host}
        if not is_loopback(self.settings.host):
            names.add(self.settings.host)
        proxied = name in self.settings.allow_host  # a proxy in front has a port of its own
        if name.lower() not in names or not (proxied or port == str(self.port())):
            raise Refusal(
                421 if host else 400,
                "this service is not called by this name: start it with --allow-host NAME",
                code="unknown_host",
            )

    def _check_origin(self, method: str, headers: dict[str, str]) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self.settings.allow_origin and origin is not None:
            return
        own = {f"http://{headers['host']}", f"https://{headers['host']}"}
        foreign_page = origin is not None and origin not in own
        navigates = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        foreign_site = site not in (None, "same-origin", "none") and not navigates
        if foreign_page or foreign_site:
            raise Refusal(
                403,
                "pages of other sites may not call this service: start it with --allow-origin URL",
                "permission_error",
                "foreign_origin",
            )

    def _check_key(self, path: str, headers: dict[str, str]) -> None:
        key = self.settings.key
        if not key or path in PUBLIC or path.startswith("/assets/"):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        digest = key_digest(key)
        if kind.lower() == "bearer" and hmac.compare_digest(key_digest(given.strip()), digest):
            return
        password = read_password(given) if kind.lower() == "basic" else ""
        if path.startswith("/sdapi/") and hmac.compare_digest(key_digest(password), digest):
            return
        cookie = read_cookie(headers.get("cookie", ""), COOKIE)
        if cookie and hmac.compare_digest(cookie.encode(), session_token(key).encode()):
            return
        raise Refusal(
            401, "the API key is missing or wrong", "authentication_error", "invalid_api_key"
        )

    def _check_body(self, scope: Scope, headers: dict[str, str]) -> None:
        if scope["method"] in SAFE:
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Refusal(400, "Content-Length is no number")
        if int(length) > self.limits.body_bytes:
            raise too_large(self.limits)
        empty = length == "0" and "transfer-encoding" not in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        form = kind == "multipart/form-data" and scope["path"].startswith(FORMS)
        if not (empty or form or kind == "application/json"):
            raise Refusal(
                415, "the body is JSON with the Content-Type application/json", code="content_type"
            )

    def _limit(self, receive: Receive) -> Receive:
        """The body, in parts that come in time and are not too large together."""
        total, complete, began = 0, False, time.monotonic()
        idle, speed = self.limits.body_idle_seconds, self.limits.body_bytes_per_second

        async def limited() -> Message:
            nonlocal total, complete
            if complete:  # what follows is that the client leaves, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), idle)
            except TimeoutError:
                raise too_slow() from None
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if total > self.limits.body_bytes:
                    raise too_large(self.limits)
                if not complete and time.monotonic() - began > idle + total / speed:
                    raise too_slow()
            return message

        return limited

    def _add_headers(self, send: Send, path: str, origin: str) -> Send:
        policy = (
            "default-src 'none'; frame-ancestors 'none'" if path.startswith("/api/files/") else CSP
        )
        extra = [*HEADERS, (b"content-security-policy", policy.encode())]
        extra.append((b"x-request-id", secrets.token_hex(12).encode()))  # clients log it
        if not path.startswith(("/assets/", "/api/files/")):
            extra.append((b"cache-control", b"no-store"))
        if origin and origin in self.settings.allow_origin:
            extra = [one for one in extra if one[0] != b"cross-origin-resource-policy"]
            extra += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin")]
            extra.append((b"access-control-expose-headers", b"x-last-event, retry-after"))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in extra}
                kept = [pair for pair in message["headers"] if pair[0].lower() not in names]
                message = {**message, "headers": [*kept, *extra]}
            await send(message)

        return answer

    async def _answer_preflight(self, send: Send) -> None:
        headers = [
            (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
            (b"access-control-allow-headers", b"authorization, content-type, last-event-id"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def too_slow() -> Refusal:
    return Refusal(408, "the body did not come in time", code="timeout")


def too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the body has more than {limits.body_bytes:,} bytes", code="too_large")


async def answer_refusal(refusal: Refusal, path: str, send: Send) -> None:
    """A refusal in the shape that the clients of this path read."""
    body = json.dumps(
        error_body(path, refusal.status, refusal.message, refusal.kind, None, refusal.code)
    )
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body.encode())).encode()),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Basic" if path.startswith("/sdapi/") else b"Bearer"))
    if refusal.status == 503:
        headers.append((b"retry-after", b"5"))
    if refusal.status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name.

    Of a header that is there twice nothing is kept where that would be a way around a check.
    """
    found: dict[str, str] = {}
    twice = set()
    for name, value in pairs:
        text = name.decode("latin-1").lower()
        if text in found:
            twice.add(text)
        found[text] = value.decode("latin-1")
    for checked in twice & {"host", "origin", "authorization", "content-length", "content-type"}:
        found[checked] = ""
    return found


def read_password(encoded: str) -> str:
    """The password of Basic credentials."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def read_cookie(header: str, name: str) -> str:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return next((value for key, _, value in pairs if key == name), "")

"""A named test for each row of what happened to services of this kind."""

import base64
import http.client
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.server.running import Running, run_service, with_limits
from triptych.server.app import build_app
from triptych.server.catalog import offered_requests
from triptych.server.guard import PUBLIC, session_token
from triptych.server.jobs.carry_out import UNEXPECTED, describe_failure
from triptych.server.settings import Serve

KEY = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def guarded(offered, tmp_path_factory) -> Iterator[Running]:
    """A service with a key, where nobody works."""
    home = tmp_path_factory.mktemp("guarded")
    with run_service(
        home, models=offered, api_key=KEY, lanes=[], allow_origin=("https://chat.example",)
    ) as running:
        yield running


def call(
    running: Running, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """A request with exactly these headers, a Host among them."""
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return found


def host_of(running: Running) -> str:
    return urlsplit(running.url).netloc


def every_route(running: Running) -> list[tuple[str, str]]:
    """Method and path of every route, from the application itself."""
    guard = build_app(running.service, lambda: 0)
    app = guard.app.__closure__[0].cell_contents  # type: ignore[attr-defined]
    document = app.openapi()
    return [
        (method.upper(), path.replace("{key}", "x").replace("{name}", "x"))
        for path, methods in document["paths"].items()
        for method in methods
    ]


def test_every_route_but_the_public_ones_needs_the_key(guarded) -> None:
    """CVE class: vLLM guarded only some of its routes."""
    routes = every_route(guarded)
    assert len(routes) > 40
    for method, path in routes:
        headers = {"Host": host_of(guarded), "Content-Type": "application/json"}
        status, _, _ = call(guarded, method, path, headers)
        assert (status == 401) == (path not in PUBLIC), (method, path, status)
        if path == "/api/events":  # which does not end
            continue
        allowed, _, _ = call(guarded, method, path, headers | {"Authorization": f"Bearer {KEY}"})
        assert allowed != 401, (method, path)


@pytest.mark.parametrize("path", ["/api/models", "/v1/models", "/sdapi/v1/options", "/metrics"])
def test_wrong_keys_are_refused(guarded, path) -> None:
    basic = base64.b64encode(f"any:{KEY}x".encode()).decode()
    for wrong in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ", KEY, f"Basic {basic}"):
        sent = {"Host": host_of(guarded), "Authorization": wrong}
        assert call(guarded, "GET", path, sent)[0] == 401
    twice = {"Host": host_of(guarded), "Cookie": f"triptych_session={KEY}"}
    assert call(guarded, "GET", path, twice)[0] == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1", "localhost", "",
        "127.0.0.1.evil.example:{port}", "[::1]:1", "0.0.0.0:{port}", "127.0.0.1:{port}@evil:80",
        "127.0.0.1:{port}/x", "2130706433:{port}", "127.1:{port}",
    ],
)  # fmt: skip
def test_other_names_of_the_host_are_refused(served, host) -> None:
    """DNS rebinding: ollama CVE-2024-28224, ComfyUI CVE-2024-10481."""
    port = urlsplit(served.url).port
    status, _, _ = call(served, "GET", "/api/models", {"Host": host.format(port=port)})
    assert status in (400, 421)


def test_names_that_are_allowed(served, offered, tmp_path) -> None:
    port = urlsplit(served.url).port
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert call(served, "GET", "/api/models", {"Host": f"{host}:{port}"})[0] == 200
    assert call(served, "GET", "/api/models", {})[0] == 400  # without a Host
    with run_service(tmp_path, lanes=[], allow_host=("studio.example",)) as running:
        assert call(running, "GET", "/healthz", {"Host": "studio.example"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://chat.example.evil"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_other_sites_are_refused(served, headers, method) -> None:
    """Request forgery: ComfyUI GHSA-5xxr-jvhm-jxmj let `Origin: null` through."""
    headers = {"Host": host_of(served), "Content-Type": "application/json", **headers}
    assert call(served, method, "/api/models", headers)[0] == 403


def test_own_pages_and_named_origins_are_let_in(served, guarded) -> None:
    own = {"Host": host_of(served), "Origin": served.url, "Sec-Fetch-Site": "same-origin"}
    assert call(served, "GET", "/api/models", own)[0] == 200
    other = {"Host": host_of(guarded), "Origin": "https://chat.example"}
    preflight = other | {"Access-Control-Request-Method": "POST"}
    status, headers, _ = call(guarded, "OPTIONS", "/v1/images/generations", preflight)
    assert status == 204 and headers["access-control-allow-origin"] == "https://chat.example"
    assert "access-control-allow-credentials" not in headers
    keyed = other | {"Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "cross-site"}
    status, headers, _ = call(guarded, "GET", "/v1/models", keyed)
    assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
    assert call(guarded, "GET", "/v1/models", other)[0] == 401


def test_a_form_or_plain_text_is_no_json(served) -> None:
    """A page can send both without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"Host": host_of(served)} | ({"Content-Type": kind} if kind else {})
        body = b'{"prompt": "a"}'
        assert call(served, "POST", "/api/text-to-image", headers, body)[0] == 415


def test_other_machines_need_a_key(monkeypatch) -> None:
    """About 300,000 ollama servers are open because 0.0.0.0 is taught."""
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.com"):
        with pytest.raises(ValueError, match="give an --api-key"):
            Serve(host=host)
        Serve(host=host, api_key=KEY)
    with pytest.raises(ValueError, match="at least 16"):
        Serve(api_key="short")
    monkeypatch.setenv("TRIPTYCH_API_KEY", KEY)
    assert Serve(host="0.0.0.0").key == KEY


def test_the_cookie_of_a_page_is_not_the_key(guarded) -> None:
    answer = guarded.http.post("/api/session", json={"key": "wrong"})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    answer = guarded.http.post("/api/session", json={"key": KEY})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 204 and KEY not in cookie
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    sent = {"Host": host_of(guarded), "Cookie": f"triptych_session={session_token(KEY)}"}
    assert call(guarded, "GET", "/api/models", sent)[0] == 200
    sent["Cookie"] = "triptych_session=" + "0" * 64
    assert call(guarded, "GET", "/api/models", sent)[0] == 401


def test_every_answer_has_safe_headers(served, guarded) -> None:
    """Stored scripts: ComfyUI CVE-2026-56670 and -56672."""
    for running, path in (
        (served, "/"),
        (served, "/api/models"),
        (served, "/x"),
        (guarded, "/api/x"),
    ):
        _, headers, _ = call(running, "GET", path, {"Host": host_of(running)})
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY" and "server" not in headers
        assert headers["referrer-policy"] == "no-referrer"
    photo = upload(served, png())
    _, headers, _ = call(served, "GET", photo["url"], {"Host": host_of(served)})
    assert headers["content-security-policy"].startswith("default-src 'none'")


def png(size: tuple[int, int] = (16, 16), **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, options.pop("format", "PNG"), **options)
    return out.getvalue()


def upload(running: Running, data: bytes, name: str = "a.png"):
    answer = running.http.post("/api/uploads", files={"file": (name, data)})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_uploads_lose_everything_but_their_pixels(served) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET-CANARY"
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    exif[0x0112] = 6  # turned
    data = png((32, 16), format="JPEG", exif=exif.tobytes(), comment=b"SECRET-CANARY")
    assert b"SECRET-CANARY" in data
    found = upload(served, data + b"<script>SECRET-CANARY</script>", "SECRET-CANARY.svg")
    assert (found["width"], found["height"]) == (16, 32)  # upright
    stored = served.http.get(found["url"]).content
    assert b"SECRET" not in stored and b"Exif" not in stored and b"script" not in stored
    assert stored.startswith(b"\x89PNG") and "SECRET" not in json.dumps(found)


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<html><img onerror=alert(1)>", b"%PDF-1.4", b"GIF89a", b"", b"\x89PNG\r\n\x1a\n",
        b"\x00" * 100, b"II*\x00", b"PK\x03\x04" + b"a" * 64,
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_our_words(served, data) -> None:
    """vLLM CVE-2026-22778: Pillow's message told an address of the heap."""
    answer = served.http.post("/api/uploads", files={"file": ("a.png", data)})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "0x" not in message and "_io" not in message and "Image" not in message


def degenerate() -> dict[str, bytes]:
    """Pictures at which services fell over."""
    found = {"1x1": png((1, 1)), "1xN": png((1, 300)), "Nx1": png((300, 1))}
    grey = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    forms = {
        "16-bit": (grey, {}), "palette": (Image.new("P", (16, 16)), {}),
        "1-bit": (Image.new("1", (16, 16)), {}), "alpha": (Image.new("RGBA", (16, 16)), {}),
        "animated": (frames[0], {"format": "GIF", "save_all": True, "append_images": frames[1:]}),
        "CMYK": (Image.new("CMYK", (16, 16)), {"format": "JPEG"}),
    }  # fmt: skip
    for name, (image, options) in forms.items():
        out = io.BytesIO()
        image.save(out, **{"format": "PNG", **options})
        found[name] = out.getvalue()
    return found


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("1x1", "1xN", "CMYK") else pytest.param(name, marks=pytest.mark.slow)
        for name in degenerate()
    ],
)
def test_degenerate_pictures_on_every_route(served, name, monkeypatch, tmp_path) -> None:
    """vLLM CVE-2026-22773: one picture of 1 x 1 ended the server. Each is answered, or refused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = degenerate()[name]
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    photo = upload(served, data)["id"]
    for body in (
        ("text-to-image", {"prompt": "a", "image": photo, "steps": 1}),
        ("classify", {"pictures": [url], "labels": ["a", "b"]}),
        ("detect", {"picture": photo, "labels": ["a"]}),
        ("embed", {"image": [url]}),
        ("search", {"folder": "photos", "image": [photo], "k": 1}),
        ("class-to-image", {"image": photo, "n": 1}),
    ):
        job = served.finish(served.submit(body[0], **body[1])["id"])
        assert job["state"] == "done" or job["error"]["type"] == "request", (body[0], job["error"])
    edit = {"prompt": "a", "images": [{"image_url": url}], "num_inference_steps": 1}
    assert served.http.post("/v1/images/edits", json=edit).status_code in (200, 400)
    form = {"image": ("a.png", data)}
    assert served.http.post("/v1/images/variations", files=form).status_code in (200, 400)
    drawn = {"prompt": "a", "init_images": [url], "steps": 1, "width": 16, "height": 16}
    assert served.http.post("/sdapi/v1/img2img", json=drawn).status_code in (200, 400)
    assert served.http.post("/sdapi/v1/png-info", json={"image": url}).status_code == 200
    found = served.http.post("/api/data-sets", files=[("files", ("a.png", data))]).json()
    assert found["pictures"] == 1 and not found["skipped"]
    assert served.http.get("/healthz").status_code == 200


def test_pictures_that_lie_about_their_size(served) -> None:
    """A header of 60,000 x 60,000, and one that ends early."""
    huge = bytearray(png())
    huge[16:24] = (60_000).to_bytes(4) * 2
    whole = png((200, 200))
    for data in (bytes(huge), whole[: len(whole) // 2]):
        answer = served.http.post("/api/uploads", files={"file": ("a.png", data)})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "value",
    [
        "http://169.254.169.254/latest", "https://127.0.0.1/a.png", "file:///etc/passwd",
        "ftp://a/b", "/etc/passwd", "../../etc/passwd", "..\\..\\x", "%2e%2e%2f", "memory:1x1:x",
        "data:text/html;base64,PHN2Zz4=", "data:image/png;base64,####", "gopher://a", "~/x.png",
    ],
)  # fmt: skip
def test_nothing_is_fetched_or_opened_by_name(served, value) -> None:
    """Request forgery through pictures: vLLM GHSA-v359-jj2v-j536, open-webui CVE-2026-45400."""
    for name, body in (
        ("text-to-image", {"prompt": "a", "image": value}),
        ("classify", {"pictures": [value], "labels": ["a"]}),
        ("search", {"folder": "results", "image": [value]}),
    ):
        assert served.http.post(f"/api/{name}", json=body).status_code == 400, name
    body = {"prompt": "a", "images": [{"image_url": value}]}
    assert served.http.post("/v1/images/edits", json=body).status_code == 400
    body = {"prompt": "a", "init_images": [value]}
    assert served.http.post("/sdapi/v1/img2img", json=body).status_code == 400


PATHS = [
    "/etc/passwd", "../../../etc/passwd", "..\\..\\windows\\win.ini", "..%2f..%2fetc", "..%5c..",
    "....//....//etc", "/proc/self/environ", "C:\\windows", "\\\\host\\share", "~root", ".", "..",
    "a\0b", "%00", "..;/", "\u2025/\u2025/", "%c0%ae%c0%ae/", "runs/../../etc", "file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_field_reaches_the_file_system(served, path) -> None:
    """Traversal: InvokeAI CVE-2025-6237, ComfyUI PR#13913, exo#2267."""
    for name, body in (
        ("text-to-image", {"prompt": "a", "model": path}),
        ("text-to-image", {"prompt": "a", "loras": [path]}),
        ("text-to-image", {"prompt": "a", "latents": path}),
        ("search", {"folder": path, "text": ["a"]}),
        ("search", {"folder": "results", "text": ["a"], "index": path}),
        ("classify", {"pictures": ["x"], "labels": [f"{path}.txt"]}),
        ("train-cvae", {"training": {"data": path}}),
        ("train-word-space", {"words": path}),
        ("train-text-to-image", {"cache": path, "init": "painter"}),
        ("check-data", {"source": path}),
    ):
        answer = served.http.post(f"/api/{name}", json=body)
        assert answer.status_code == 400, (name, answer.text)
    answer = served.http.post("/api/train-cvae", params={"run": path}, json={})
    assert answer.status_code == 400
    for route in ("/api/files/", "/api/jobs/", "/v1/models/", "/api/data-sets/"):
        raw = route + path.encode().hex(" ").replace(" ", "%").join(["%", ""])
        assert call(served, "GET", raw, {"Host": host_of(served)})[0] in (404, 405)


def test_every_text_of_every_request_is_checked(served) -> None:
    """A field that may name a file, in a system of today or of tomorrow, cannot."""
    canary = "/etc/canary-of-a-path"
    for offered in offered_requests().values():
        from triptych.given import Names
        from triptych.server.catalog import find_mark, typed_fields

        for field, hint in typed_fields(offered.kind):
            mark = find_mark(hint)
            if mark in (None, Names.NOTHING, Names.LABELS):
                continue
            value = [canary] if "tuple" in str(hint) else canary
            answer = served.http.post(f"/api/{offered.name}", json={field.name: value})
            assert answer.status_code == 400, (offered.name, field.name)


def test_large_bodies_are_refused_before_they_are_read(tmp_path) -> None:
    with run_service(tmp_path, lanes=[], limits=with_limits(body_bytes=1000)) as running:
        host = {"Host": host_of(running), "Content-Type": "application/json"}
        huge = host | {"Content-Length": "100000000"}
        assert call(running, "POST", "/api/text-to-image", huge)[0] == 413
        body = b'{"prompt": "' + b"a" * 2000 + b'"}'
        assert call(running, "POST", "/api/text-to-image", host, body)[0] == 413
        chunked = host | {"Transfer-Encoding": "chunked"}
        parts = b"".join(b"64\r\n" + b"a" * 100 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
        connection = http.client.HTTPConnection(host_of(running), timeout=60)
        connection.putrequest("POST", "/api/text-to-image", skip_host=True)
        for name, value in chunked.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(parts)
        assert connection.getresponse().status == 413


def test_deep_and_odd_json_is_refused(served) -> None:
    headers = {"Host": host_of(served), "Content-Type": "application/json"}
    for body in (b"[" * 100_000, b"{", b"\xff\xfe", b'{"n": NaN}', b'{"n": 1e999}', b"null"):
        assert call(served, "POST", "/api/text-to-image", headers, body)[0] == 400
        assert call(served, "POST", "/v1/images/generations", headers, body)[0] == 400
        if b"1e999" not in body:  # a field that is not known there
            assert call(served, "POST", "/sdapi/v1/txt2img", headers, body)[0] == 400


def test_errors_tell_nothing_of_the_machine(served, models, monkeypatch) -> None:
    """No text of a library, no path, no name of the user."""
    try:
        np.zeros((2, 3)) @ np.zeros((2, 3))
    except ValueError as error:
        assert describe_failure(error)["message"] == UNEXPECTED
    assert describe_failure(MemoryError())["type"] == "memory"
    found = describe_failure_of(ValueError(f"{models}/runs/painter/config.json: is damaged"))
    assert found["message"] == "config.json: is damaged"
    config = models / "runs" / "painter" / "config.json"
    text = config.read_text()
    os.utime(config.parent / "model.safetensors", (1, 1))
    try:
        config.write_text("{")
        os.utime(config.parent)  # so that it is loaded again
        job = served.finish(served.submit("text-to-image", prompt="a")["id"])
    finally:
        config.write_text(text)
        os.utime(config.parent)
    assert job["state"] == "failed" and "is not JSON" in job["error"]["message"]
    assert str(models) not in json.dumps(job) and job["error"]["message"].startswith("painter/")


def describe_failure_of(error: Exception) -> dict[str, str]:
    """As if it was raised in the package."""
    code = compile("raise error", str(Path(build_app.__code__.co_filename)), "exec")
    try:
        exec(code, {"error": error})
    except Exception as raised:
        return describe_failure(raised)
    raise AssertionError


def test_scripts_in_prompts_and_names_are_only_text(served) -> None:
    """Stored scripts: open-webui CVE-2026-44549."""
    script = "<img src=x onerror=alert(1)>"
    job = served.made("text-to-image", prompt=script, steps=1)
    assert job["request"]["prompt"] == script
    answer = served.http.get("/api/results", params={"words": "onerror"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()[0]["facts"]["prompt"] == script


def test_pickles_are_never_loaded(served, models, tmp_path) -> None:
    """InvokeAI CVE-2024-12029. What is offered is chosen at the start, not by a client, and the
    reader of the library executes nothing (tests/weights)."""
    assert served.http.post("/api/embed", json={"model": "x.pt", "text": ["a"]}).status_code == 400


def test_other_methods_and_routes_that_read_files_do_not_exist(served) -> None:
    for path in ("/docs", "/redoc", "/sdapi/v1/cmd-flags", "/sdapi/v1/extra-single-image", "/view"):
        assert served.http.get(path).status_code == 404
    assert served.http.put("/api/models").status_code == 405


def test_only_the_owner_reads_the_home(tmp_path) -> None:
    with run_service(tmp_path / "home", lanes=[]):
        assert (tmp_path / "home").stat().st_mode & 0o077 == 0
        assert (tmp_path / "home" / "service.sqlite").stat().st_mode & 0o077 == 0

"""The page of the studio: as it was built, its files kept for ever, and none beside them."""

import gzip
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from triptych.server.routes import page
from triptych.server.routes.errors import handle_errors


def client_of(built: Path) -> TestClient:
    app = FastAPI()
    handle_errors(app)
    app.include_router(page.routes(built))
    return TestClient(app)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A built page, and a file beside it that nobody may read."""
    folder = tmp_path / "studio"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>built</title>")
    (folder / "assets" / "index-1a2b.js").write_text("let x = 1;\n" * 50)
    (tmp_path / "secret.js").write_text("key")
    return folder


def test_before_it_is_built_the_page_says_how_to_build_it(tmp_path: Path) -> None:
    answer = client_of(tmp_path).get("/")
    assert answer.status_code == 200
    assert "make studio" in answer.text


def test_the_built_page_is_served(built: Path) -> None:
    answer = client_of(built).get("/")
    assert answer.text == "<title>built</title>"
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("accepts", ["gzip", "identity"])
def test_files_with_a_digest_in_their_name_are_kept_for_ever(built: Path, accepts: str) -> None:
    with client_of(built).stream(
        "GET", "/assets/index-1a2b.js", headers={"accept-encoding": accepts}
    ) as answer:
        sent = b"".join(answer.iter_raw())
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["vary"] == "accept-encoding"
    compressed = answer.headers.get("content-encoding") == "gzip"
    assert compressed == (accepts == "gzip")
    plain = gzip.decompress(sent) if compressed else sent
    assert plain == (built / "assets" / "index-1a2b.js").read_bytes()


@pytest.mark.parametrize(
    "name", ["secret.js", "..%2Fsecret.js", "..%2F..%2Fsecret.js", "index.html"]
)
def test_no_other_file_is_served(built: Path, name: str) -> None:
    answer = client_of(built).get(f"/assets/{name}")
    assert answer.status_code == 404
    assert "key" not in answer.text

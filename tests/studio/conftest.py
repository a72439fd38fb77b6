"""The built page in a real Chromium, with a real service of tiny models."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.server import conftest as server
from tests.server.running import LONG, Running, run_service
from tests.systems.unclip import tiny_unclip
from triptych.server.routes.page import BUILT
from triptych.server.settings import Limits

models = server.models
NO_BROWSER = "these tests need Chromium: `apt-get install chromium`, or name one in CHROMIUM"
NOT_BUILT = "the page is not built: run `make studio`"
PLACES = ("chromium", "chromium-browser", "google-chrome")
PATIENT = 1000 * LONG
"""Milliseconds that a test waits for what will happen, however loaded the machine is."""
expect.set_options(timeout=PATIENT)


@pytest.fixture(scope="session")
def offered(models: Path) -> tuple[str, ...]:
    """A model of every kind that draws or sees."""
    folder = models / "runs"
    tiny_unclip.saved(folder / "chain")
    names = ("painter", "seer", "digits-vae", "chain")
    return tuple(str(folder / name) for name in names)


def find_chromium() -> str:
    """The browser that CHROMIUM names, or the system's."""
    named = os.environ.get("CHROMIUM", "")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, PLACES)), None)
    if found is None:
        pytest.fail(NO_BROWSER)
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if not (BUILT / "index.html").is_file():
        pytest.fail(NOT_BUILT)
    with sync_playwright() as playwright:
        # a container has no sandbox of its own for the browser's
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def service(
    offered: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A service whose queue and library all tests share."""
    home = tmp_path_factory.mktemp("home")
    with run_service(home, limits=Limits(), models=offered) as running:
        yield running


Open = Callable[..., Page]


@pytest.fixture
def context(browser: Browser, service: Running) -> Iterator[BrowserContext]:
    """One user's browser. Nothing may be written to its console as an error: that is where a
    violation of the content security policy is told, and an exception of the page.
    """
    context = browser.new_context(base_url=service.url, reduced_motion="reduce")
    context.set_default_timeout(PATIENT)
    said: list[str] = []
    context.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    context.on("weberror", lambda one: said.append(str(one.error)))
    yield context
    context.close()
    for job in service.http.get("/api/queue").json():  # of a test that failed: the next would wait
        service.http.delete(f"/api/jobs/{job['id']}")
    expected = "Failed to load resource"  # a request that the service refuses, as tests ask for
    assert [text for text in said if expected not in text] == []


@pytest.fixture
def open_page(context: BrowserContext) -> Open:
    """Opens a page of the studio by the part of its address behind `#/`."""

    def open_one(place: str = "create", width: int = 1280, height: int = 860) -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.goto(f"/#/{place}")
        page.get_by_role("navigation", name="Pages").wait_for()
        return page

    return open_one


@pytest.fixture
def picture(tmp_path: Path, service: Running) -> Path:
    """A picture that says how it was made."""
    job = service.made("text-to-image", model="painter", prompt="a red boat", seed=11, steps=2)
    path = tmp_path / "boat.png"
    path.write_bytes(service.http.get(job["result"]["pictures"][0]["url"]).content)
    return path

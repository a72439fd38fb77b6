"""Every page: reached with the keyboard and a screen reader, at 360 pixels, in both colours."""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.running import Running
from tests.studio.conftest import NOT_BUILT, Open
from triptych.server.routes.page import BUILT

PAGES = ("create", "library", "see", "train", "understand")
INSTRUMENTS = (
    "shared", "plane", "guidance", "path", "matrix", "readings", "batches", "critic", "priors",
    "ladder",
)  # fmt: skip
PLACES = (
    *PAGES, "ask", "see?do=detect", "see?do=search",
    *(f"understand?show={name}" for name in INSTRUMENTS),
)  # fmt: skip
AXE = Path(__file__).parents[2] / "studio" / "node_modules" / "axe-core" / "axe.min.js"
MOST = 150 * 1024
"""Bytes of JavaScript at the first page, compressed."""


def visit(page: Page, place: str) -> None:
    """Go to a place of the page that is open."""
    page.evaluate("place => { location.hash = `#/${place}`; }", place)
    kind = place.partition("?")[0].capitalize()
    expect(page.get_by_role("heading", level=1, name=kind)).to_be_attached()
    expect(page.get_by_text("This page could not be loaded")).to_have_count(0)


def find_serious(page: Page) -> list[tuple[str, Any]]:
    """What axe finds to be serious."""
    found = page.evaluate("axe.run()")["violations"]
    return [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("scheme", "places"),
    [
        ("light", PAGES[:1]),
        pytest.param("light", PLACES, marks=pytest.mark.slow),
        pytest.param("dark", PLACES, marks=pytest.mark.slow),
    ],
    ids=["the first page", "light", "dark"],
)
def test_axe_has_no_serious_finding_on_any_page(
    open_page: Open, service: Running, scheme: Any, places: Sequence[str]
) -> None:
    service.made("text-to-image", model="painter", prompt="a hill", steps=1)
    page = open_page()
    page.emulate_media(color_scheme=scheme)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for place in places:
        visit(page, place)
        assert find_serious(page) == [], place


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 320])
def test_nothing_is_cut_off_on_a_telephone(open_page: Open, service: Running, width: int) -> None:
    page = open_page(width=width, height=740)
    for place in PLACES:
        visit(page, place)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place


@pytest.mark.slow
def test_the_colours_that_are_chosen_stay(open_page: Open) -> None:
    page = open_page()
    page.emulate_media(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name=re.compile("^Colours: system")).click()
    page.get_by_role("button", name=re.compile("^Colours: light")).click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    page.get_by_role("button", name=re.compile("^Colours: dark")).wait_for()
    assert page.evaluate(ground) == dark


@pytest.mark.slow
def test_the_page_says_when_nobody_answers_and_goes_on_by_itself(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Prompt", exact=True).wait_for()
    page.context.set_offline(True)
    page.get_by_label("Prompt", exact=True).fill("a hill")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_text("The service does not answer").first).to_be_visible()
    page.context.set_offline(False)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_text("The service does not answer")).to_have_count(0)


@pytest.mark.slow
def test_the_queue_is_changed_from_any_page(open_page: Open, service: Running) -> None:
    long = {"model": "painter", "n": 64, "steps": 150}
    first = service.submit("text-to-image", prompt="the first", **long)
    waits = [service.submit("text-to-image", prompt=f"waits {i}", **long) for i in range(2)]
    page = open_page("train")
    page.get_by_role("button", name=re.compile("^Queue")).click()
    queue = page.get_by_role("dialog", name="Queue")
    queue.get_by_role("button", name="Earlier: waits 1").click()
    expect(queue.get_by_role("listitem").nth(1)).to_contain_text("waits 1")
    assert service.http.get(f"/api/jobs/{waits[1]['id']}").json()["place"] == 0
    for name in ("waits 0", "waits 1", "the first"):
        queue.get_by_role("button", name=f"Cancel {name}").click()
    expect(queue.get_by_text("Nothing runs.")).to_be_visible()
    for job in (first, *waits):
        assert service.finish(job["id"])["state"] == "cancelled"


def test_the_first_page_is_small() -> None:
    if not (BUILT / "index.html").is_file():
        pytest.fail(NOT_BUILT)
    index = (BUILT / "index.html").read_text(encoding="utf-8")
    scripts = re.findall(r'(?:src|href)="/(assets/[^"]+\.js)"', index)
    assert scripts
    size = sum(len(gzip.compress((BUILT / script).read_bytes())) for script in scripts)
    assert size <= MOST


def test_nothing_is_fetched_from_other_places(open_page: Open, service: Running) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    for name in ("Library", "See", "Train", "Understand"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
    assert asked
    foreign = [url for url in asked if not url.startswith((service.url, "data:", "blob:"))]
    assert foreign == []

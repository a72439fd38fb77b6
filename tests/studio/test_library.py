"""Library: found again, compared, recalled, deleted; and as many as one likes."""

import re

import pytest
from playwright.sync_api import expect

from tests.server.running import Running
from tests.studio.conftest import Open

pytestmark = pytest.mark.slow
MANY = 5_000


def make(service: Running, prompt: str, **fields: object) -> str:
    """A picture; returns its id."""
    job = service.made("text-to-image", model="painter", prompt=prompt, steps=1, **fields)
    key: str = job["result"]["pictures"][0]["id"]
    return key


def test_pictures_are_found_by_the_words_of_their_prompt(open_page: Open, service: Running) -> None:
    make(service, "an otter with a lantern")
    make(service, "a heron")
    page = open_page("library")
    page.get_by_label("Search pictures").fill("lantern otter")
    page.keyboard.press("Enter")
    pictures = page.get_by_role("list", name="pictures")
    expect(pictures.get_by_role("img")).to_have_count(1)
    expect(pictures.get_by_role("img")).to_have_attribute("alt", re.compile("^an otter with"))
    page.get_by_label("Search pictures").fill("nothing like it")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing has these words.")).to_be_visible()


def test_a_picture_is_recalled_with_all_its_settings(open_page: Open, service: Running) -> None:
    make(service, "a walrus", seed=77, guidance=2.5)
    page = open_page("library?words=walrus")
    page.get_by_role("button", name="a walrus").click()
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a walrus")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("77")
    expect(page.get_by_label("Guidance", exact=True)).to_have_value("2.5")


def test_two_pictures_are_compared_by_what_differs(open_page: Open, service: Running) -> None:
    make(service, "a badger", seed=1, guidance=2.0)
    make(service, "a badger", seed=1, guidance=5.0)
    page = open_page("library?words=badger")
    boxes = page.get_by_role("checkbox", name="Choose a badger")
    expect(boxes).to_have_count(2)
    for box in boxes.all():
        box.check()
    page.get_by_role("button", name="Compare two").click()
    table = page.get_by_role("dialog", name="Compare").get_by_role("table")
    expect(table.get_by_role("rowheader")).to_have_text(["guidance"])


def test_what_is_deleted_is_gone(open_page: Open, service: Running) -> None:
    key = make(service, "a regretted picture")
    page = open_page("library?words=regretted")
    page.get_by_role("checkbox", name="Choose a regretted picture").check()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete 1 for good").click()
    expect(page.get_by_text("Nothing has these words.")).to_be_visible()
    assert service.http.get(f"/api/files/{key}").status_code == 404


def test_five_thousand_pictures_are_scrolled_with_few_in_the_page(
    open_page: Open, service: Running
) -> None:
    key = make(service, "the one that all files show")
    files = service.service.files
    path = files.file(key).path
    for number in range(MANY):
        facts = {"prompt": f"sheep {number}", "seed": number}
        files.add_file(path, (16, 16), kind="made", facts=facts, words="sheep counted")
    page = open_page("library?words=counted")
    gallery = page.get_by_role("list", name="pictures")
    expect(gallery.get_by_role("img").first).to_have_attribute(
        "alt", f"sheep {MANY - 1}, seed 4999"
    )
    last = gallery.get_by_role("img", name="sheep 0, seed 0", exact=True)
    most = 0
    for _ in range(200):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        most = max(most, gallery.get_by_role("listitem").count())
        if last.count():
            break
        page.wait_for_timeout(100)
    expect(last).to_be_visible()
    assert 0 < most < 150

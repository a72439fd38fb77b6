"""Create: the first picture, cancel, reload, two tabs, mask, grid, recall."""

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.server.conftest import save_digits
from tests.server.running import Running
from tests.studio.conftest import Open

PERCENT = re.compile(r"^\d+ % ")
LONG: dict[str, Any] = {"model": "painter", "prompt": "a long work", "n": 64, "steps": 150}


def draw(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()


def finished(page: Page, prompt: str) -> None:
    """Wait until the pictures of a prompt are shown."""
    stage = page.get_by_role("region", name="Pictures")
    expect(stage.get_by_role("img", name=prompt).first).to_be_visible()
    expect(stage.get_by_text("Done")).to_be_visible()


def newest(service: Running) -> dict[str, Any]:
    job: dict[str, Any] = service.http.get("/api/jobs", params={"limit": 1}).json()[0]
    return job


def test_the_first_picture(open_page: Open, service: Running) -> None:
    page = open_page()
    draw(page, "a green hill")
    finished(page, "a green hill")
    expect(page).to_have_title("Triptych")
    request = newest(service)["request"]
    assert request["prompt"] == "a green hill"
    assert request["seed"] is None  # not locked: the service draws one


@pytest.mark.slow
def test_words_of_a_prompt_are_shown_as_words(open_page: Open, service: Running) -> None:
    prompt = "<img src=x onerror=document.title='pwned'> a hill"
    service.made("text-to-image", model="painter", prompt=prompt, steps=1)
    page = open_page()
    expect(page.get_by_role("region", name="Pictures").get_by_text(prompt)).to_be_visible()
    assert page.locator("img[src='x']").count() == 0
    expect(page).to_have_title("Triptych")


@pytest.mark.slow
def test_a_seed_that_is_locked_draws_the_same_noise(open_page: Open, service: Running) -> None:
    page = open_page()
    draw(page, "a small bridge")
    finished(page, "a small bridge")
    seed = newest(service)["result"]["pictures"][0]["facts"]["seed"]
    page.get_by_role("button", name="Lock the seed").click()
    draw(page, "a large bridge")
    finished(page, "a large bridge")
    assert newest(service)["request"]["seed"] == seed


@pytest.mark.slow
def test_an_error_is_shown_beside_its_field_in_the_services_words(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Steps", exact=True).fill("100000")
    draw(page, "a hill")
    steps = page.get_by_label("Steps", exact=True)
    expect(steps).to_have_attribute("aria-invalid", "true")
    said = page.locator(f"[id='{steps.get_attribute('aria-describedby')}']")
    expect(said).to_contain_text("steps")


def test_cancel_stops_what_runs(open_page: Open, service: Running) -> None:
    job = service.submit("text-to-image", **LONG)
    page = open_page(f"create?job={job['id']}")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("Cancelled", exact=True)).to_be_visible()
    assert service.http.get(f"/api/jobs/{job['id']}").json()["state"] == "cancelled"


def test_a_reload_in_the_middle_loses_nothing(open_page: Open, service: Running) -> None:
    job = service.submit("text-to-image", **LONG)
    page = open_page(f"create?job={job['id']}")
    expect(page.get_by_role("img", name="What the model expects so far")).to_be_visible()
    expect(page).to_have_title(PERCENT)
    page.reload()
    expect(page).to_have_title(PERCENT)
    stage = page.get_by_role("region", name="Pictures")
    expect(stage.get_by_text("a long work")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("Cancelled", exact=True)).to_be_visible()


@pytest.mark.slow
def test_two_tabs_show_the_same(open_page: Open) -> None:
    one, two = open_page(), open_page()
    draw(one, "a yellow tower")
    finished(one, "a yellow tower")
    finished(two, "a yellow tower")


def leave(page: Page, hidden: bool) -> None:
    """Another tab is looked at, or this one again."""
    page.evaluate(
        "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')); }", hidden,
    )  # fmt: skip


@pytest.mark.slow
def test_there_may_be_more_tabs_than_connections(open_page: Open, service: Running) -> None:
    """A browser opens six connections to a service, for all tabs together."""
    tabs: list[Page] = []
    for _ in range(8):
        tabs.append(open_page())
        leave(tabs[-1], True)
    first, last = tabs[0], tabs[-1]
    first.reload()
    leave(first, True)  # perhaps before it follows
    leave(last, False)
    draw(last, "a crowded street")
    finished(last, "a crowded street")
    leave(first, False)
    finished(first, "a crowded street")
    leave(first, True)
    job = service.submit("text-to-image", **LONG)
    expect(first).to_have_title(PERCENT)
    service.http.delete(f"/api/jobs/{job['id']}")
    expect(first).to_have_title("Triptych")


@pytest.mark.slow
def test_what_one_tab_deletes_is_gone_in_the_other(open_page: Open, service: Running) -> None:
    service.made("text-to-image", model="painter", prompt="a short-lived goose", steps=1)
    one, two = open_page("library?words=goose"), open_page("library?words=goose")
    boxes = [page.get_by_role("checkbox", name="Choose a short-lived goose") for page in (one, two)]
    for box in boxes:
        expect(box).to_have_count(1)
    boxes[0].check()
    one.get_by_role("button", name="Delete", exact=True).click()
    one.get_by_role("button", name="Delete 1 for good").click()
    expect(boxes[1]).to_have_count(0)


@pytest.mark.slow
def test_tokens_are_counted_once_the_model_is_there(open_page: Open, service: Running) -> None:
    service.made("text-to-image", model="painter", prompt="a hill", steps=1)
    page = open_page()
    page.get_by_label("Model", exact=True).select_option("painter")
    page.get_by_label("Prompt", exact=True).fill("a (red:1.3) hill")
    summary = page.locator("summary", has_text="tokens")
    expect(summary).to_be_visible()
    summary.click()
    expect(page.locator(".window span[title='weight 1.3']").first).to_be_visible()


@pytest.mark.slow
def test_classes_of_a_model_are_buttons(open_page: Open, service: Running) -> None:
    page = open_page()
    page.get_by_label("Model", exact=True).select_option("digits-vae")
    page.get_by_role("group", name="Class").get_by_role("button", name="7").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    stage = page.get_by_role("region", name="Pictures")
    expect(stage.get_by_text("Done")).to_be_visible()
    assert newest(service)["request"]["label"] == "7"


@pytest.mark.slow
def test_a_model_that_was_deleted_is_said_to_be_gone(open_page: Open, service: Running) -> None:
    folder = service.service.places.runs / "short-lived"
    save_digits(folder)
    page = open_page()
    models = page.get_by_label("Model", exact=True)
    models.select_option("short-lived")
    shutil.rmtree(folder)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_text("The model “short-lived” is no longer there")).to_be_visible()
    expect(models.get_by_role("option", name="short-lived")).to_have_count(0)


@pytest.mark.slow
def test_a_mask_is_painted_in_the_page(open_page: Open, service: Running, picture: Path) -> None:
    page = open_page()
    page.get_by_text("Start from a picture").click()
    page.locator("details:has-text('Start from a picture') input[type=file]").set_input_files(
        picture
    )
    page.get_by_role("button", name="Redraw only a part").click()
    canvas = page.locator("canvas")
    expect(canvas).to_be_visible()
    page.wait_for_function("document.querySelector('canvas').width < 300")
    box = canvas.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 3, middle, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Use the mask").click()
    expect(canvas).to_be_hidden()
    draw(page, "a blue boat")
    finished(page, "a blue boat")
    request = newest(service)["request"]
    data = service.http.get(f"/api/files/{request['mask']}").content
    mask = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    row = mask[len(mask) // 2]
    assert row[0] == 255 and row[-1] == 0  # white is redrawn: the left, where it was painted
    assert mask[0, 0] == 0
    assert request["image"]


@pytest.mark.slow
def test_a_grid_of_settings_shares_its_noise(open_page: Open, service: Running) -> None:
    page = open_page()
    page.get_by_label("Prompt", exact=True).fill("a grid")
    page.locator("summary", has_text="What does a setting do?").click()
    page.locator("#Across-field").select_option("guidance")
    page.locator("#Across-values").fill("1, 4")
    page.locator("#Down-field").select_option("steps")
    page.locator("#Down-values").fill("1, 2")
    page.get_by_role("button", name="Draw 4 pictures").click()
    grid = page.get_by_role("region", name="Grid of settings")
    expect(grid.get_by_role("img", name="a grid")).to_have_count(4)
    expect(grid.get_by_role("columnheader")).to_have_text(["Steps ↓", "1", "4"])
    page.reload()  # the address has it
    expect(grid.get_by_role("img", name="a grid")).to_have_count(4)
    jobs = service.http.get("/api/jobs", params={"limit": 4}).json()
    settings = {(job["request"]["guidance"], job["request"]["steps"]) for job in jobs}
    assert settings == {(1, 1), (4, 1), (1, 2), (4, 2)}
    assert len({job["request"]["seed"] for job in jobs}) == 1


DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  return transfer;
}"""


@pytest.mark.slow
def test_a_dropped_picture_brings_its_settings_back(open_page: Open, picture: Path) -> None:
    page = open_page()
    data = base64.b64encode(picture.read_bytes()).decode()
    transfer = page.evaluate_handle(DROP, [data, picture.name])
    page.locator(".page").dispatch_event("drop", {"dataTransfer": transfer})
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red boat")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("11")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("2")


def press_tab(page: Page) -> None:
    """Go to the next control; a page that was opened just now may not have the keyboard yet."""
    focused = "document.activeElement !== document.body"
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate(focused):
            return
        page.wait_for_timeout(50)


@pytest.mark.slow
def test_keyboard_alone_draws_and_looks(open_page: Open) -> None:
    page = open_page()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_visible()
    press_tab(page)
    expect(page.get_by_text("To the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(prompt).to_be_focused()
    page.keyboard.type("a quiet lake")
    page.keyboard.press("Control+Enter")
    finished(page, "a quiet lake")
    shot = page.get_by_role("region", name="Pictures").get_by_role("button").first
    shot.focus()
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog", name="Picture")
    expect(viewer).to_be_visible()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()

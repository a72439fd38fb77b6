"""Understand: every instrument on the models that are here."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.running import Running, wait_until
from tests.studio.conftest import Open
from tests.systems.clip import tiny_clip

pytestmark = pytest.mark.slow


def test_the_same_z_is_drawn_as_every_class(open_page: Open, service: Running) -> None:
    page = open_page("understand?show=shared")
    page.get_by_label("Model", exact=True).select_option("digits-vae")
    page.get_by_role("button", name="Draw 5 z").click()
    expect(page.get_by_role("table").get_by_role("img")).to_have_count(50)
    names = page.get_by_role("columnheader").all_inner_texts()[1:]
    assert names == list("0123456789")
    jobs = service.http.get("/api/jobs", params={"limit": 10}).json()
    assert len({job["request"]["seed"] for job in jobs}) == 1


def test_guidance_is_drawn_from_0_to_8_on_one_noise(open_page: Open, service: Running) -> None:
    page = open_page("understand?show=guidance")
    page.get_by_label("Prompt").fill("a boat")
    page.get_by_role("button", name="Draw nine pictures").click()
    slider = page.get_by_role("slider", name="Guidance")
    slider.fill("8")
    expect(page.get_by_role("img", name="Guidance 8")).to_be_visible()
    jobs = service.http.get("/api/jobs", params={"limit": 9}).json()
    assert sorted(job["request"]["guidance"] for job in jobs) == list(range(9))
    assert len({job["request"]["seed"] for job in jobs}) == 1


def test_a_samplers_path_has_a_prediction_for_each_step(open_page: Open, service: Running) -> None:
    page = open_page("understand?show=path")
    page.get_by_label("Prompt").fill("a boat")
    page.get_by_label("Steps", exact=True).fill("6")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("button", name="Prediction at finished")).to_be_visible()
    job = service.http.get("/api/jobs", params={"limit": 1}).json()[0]
    kept = [event for event in service.events(job["id"]) if event["event"] == "preview"]
    steps = page.get_by_role("button", name="Prediction at")
    expect(steps).to_have_count(len(kept) + 1)
    assert len(kept) >= 5
    page.reload()  # the service keeps them
    expect(steps).to_have_count(len(kept) + 1)


def test_the_latent_plane_is_walked_with_pointer_and_keys(
    open_page: Open, service: Running
) -> None:
    page = open_page("understand?show=plane")
    page.get_by_label("Model", exact=True).select_option("digits-vae")
    page.get_by_role("button", name="Draw the plane").click()
    plane = page.get_by_role("slider", name="Place on the plane")
    expect(plane.locator("img")).to_have_count(81)
    expect(plane).to_have_attribute("aria-valuetext", "0.00 across, 0.00 up")
    page.get_by_role("group", name="Class").get_by_role("button", name="7").click()
    expect(page.get_by_role("button", name="7", pressed=True)).to_be_visible()
    expect(plane.locator("img")).to_have_count(81)
    plane.click(position={"x": 1, "y": 1})
    expect(plane).to_have_attribute("aria-valuetext", "-1.59 across, 1.59 up")
    plane.focus()
    page.keyboard.press("Shift+ArrowRight")
    expect(plane).not_to_have_attribute("aria-valuetext", "-1.59 across, 1.59 up")

    def walked() -> list[dict[str, Any]]:
        jobs = service.http.get("/api/jobs").json()
        return [job for job in jobs if len(job["request"].get("points", [])) == 1]

    wait_until(lambda: bool(walked()))
    assert walked()[0]["request"]["label"] == "7"


@pytest.fixture
def pairs(tmp_path: Path) -> list[Path]:
    return sorted(tiny_clip.pictures(tmp_path / "pairs", 4).rglob("*.png"))[:3]


def compare(page: Page, pictures: list[Path]) -> None:
    inputs = page.locator("details", has_text="Pictures and texts")
    if inputs.get_attribute("open") is None:  # an answer is shown
        inputs.locator("summary").click()
    before = page.get_by_role("button", name="Remove picture 1", exact=True)
    while before.count():  # the form begins with the last request of its kind
        before.click()
    page.locator("input[type=file]").set_input_files(pictures)
    expect(page.get_by_role("img", name="Picture 3")).to_be_visible()
    page.get_by_label("Texts, one a line").fill("a red cat\na dog\na bus")
    page.get_by_role("button", name="Compare").click()


def test_the_matrix_follows_its_temperature(open_page: Open, pairs: list[Path]) -> None:
    page = open_page("understand?show=matrix")
    compare(page, pairs)
    cells = page.get_by_role("table").locator("td")
    expect(cells).to_have_count(9)
    page.get_by_role("slider", name="Temperature").fill("0")
    expect(cells.first).to_contain_text("3")  # at temperature 1 nearly a third each
    page.get_by_role("button", name="Cosines", exact=True).click()
    expect(cells.first).to_contain_text(".")
    expect(page.get_by_text("Loss of this batch")).to_be_visible()


def test_a_text_that_is_left_out_changes_the_softmax_and_not_the_sigmoid(
    open_page: Open, pairs: list[Path]
) -> None:
    page = open_page("understand?show=readings")
    compare(page, pairs)
    rows = page.get_by_role("table").locator("tbody tr")
    expect(rows).to_have_count(4)
    shares = [rows.nth(at).locator("td").nth(1).inner_text() for at in range(3)]
    best = max(range(3), key=lambda at: float(shares[at].strip("< %")))
    other = (best + 1) % 3
    softmax, fits = (rows.nth(other).locator("td").nth(at) for at in (1, 2))
    alone = fits.inner_text()
    rows.nth(best).get_by_role("checkbox").uncheck()
    expect(softmax).not_to_have_text(shares[other])
    expect(fits).to_have_text(alone)


def test_losses_over_the_batch_are_drawn_for_the_pictures_of_the_library(
    open_page: Open, service: Running
) -> None:
    for prompt in ("a red cat", "a dog", "a bus"):
        service.made("text-to-image", model="painter", prompt=prompt, steps=1, seed=1)
    page = open_page("understand?show=batches")
    page.get_by_role("button", name="Take pictures of the library").click()
    page.get_by_role("button", name="Compare").click()
    for title in ("Pictures that find their text", "Softmax loss, nats", "Sigmoid loss, nats"):
        expect(page.get_by_role("img", name=title)).to_be_visible()


def test_the_critic_is_watched_while_it_trains(open_page: Open, service: Running) -> None:
    training = {"data": "digits", "steps": 2, "batch_size": 4, "log_every": 1, "device": "cpu"}
    job = service.submit("train-wgan", training=training)
    page = open_page("understand?show=critic")
    expect(page.get_by_role("img", name="Norm of the critic's gradients")).to_be_visible()
    assert service.finish(job["id"])["state"] == "done"


def test_priors_and_ladder_of_a_dalle_2(open_page: Open, pairs: list[Path]) -> None:
    page = open_page("understand?show=priors")
    page.get_by_label("Prompt").fill("a boat")
    page.get_by_role("button", name="Draw with each prior").click()
    expect(page.get_by_role("listitem").get_by_role("img")).to_have_count(12)
    page.get_by_role("link", name="The ladder of components").click()
    page.locator("input[type=file]").set_input_files(pairs[0])
    page.get_by_role("button", name="Climb the ladder").click()
    # 1, 2 and all 4 of the tiny model, and the picture itself
    expect(page.get_by_role("button", name="Components")).to_have_count(4)

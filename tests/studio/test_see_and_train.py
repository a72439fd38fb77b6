"""See and Train: what a model sees, and a model of one's own pictures."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.server.running import Running
from tests.studio.conftest import PATIENT, Open
from tests.systems.clip import tiny_clip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tiny_clip.pictures(tmp_path / "photos", 4)


@pytest.mark.slow
def test_classify_shows_cosine_softmax_and_sigmoid(open_page: Open, photos: Path) -> None:
    page = open_page("see")
    page.get_by_label("Pictures", exact=True).last.set_input_files(
        sorted(photos.rglob("*.png"))[:2]
    )
    expect(page.get_by_role("img", name="Picture 2")).to_be_visible()
    page.get_by_label("Labels").fill("cat, dog, a red bus")
    page.get_by_role("button", name="Classify").click()
    table = page.get_by_role("table")
    expect(table).to_have_count(2)
    expect(table.first.get_by_role("row")).to_have_count(4)
    shares = table.first.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert 95 < sum(float(one.strip("< %")) for one in shares) < 105


@pytest.mark.slow
def test_detect_shows_boxes_and_the_heat_of_each_label(open_page: Open, photos: Path) -> None:
    page = open_page("see?do=detect")
    page.locator("form input[type=file]").set_input_files(sorted(photos.rglob("*.png"))[0])
    expect(page.get_by_role("img", name="Chosen")).to_be_visible()
    page.get_by_label("What to look for").fill("a cat, a dog")
    page.get_by_role("button", name="Detect", exact=True).click()
    page.get_by_role("button", name="Heat of a dog").click()
    expect(page.get_by_role("img", name="Heat map of a dog")).to_be_visible()


def test_a_folder_of_pictures_becomes_a_model_that_draws(
    open_page: Open, service: Running, tmp_path: Path
) -> None:
    for label in ("left", "right"):
        tiny_clip.pictures(tmp_path / "own" / label, 6)
    page = open_page("train")
    page.get_by_label("Folder of pictures").set_input_files(tmp_path / "own")
    expect(page.get_by_role("list", name="Pictures of each class")).to_contain_text("left")
    page.get_by_label("Recipe").select_option("train-cvae")
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("Batch size").fill("40")
    page.get_by_label("Side in pixels").fill("8")
    page.get_by_label("Name of the model").fill("own-pictures")
    page.get_by_role("button", name="Start training").click()
    training = page.get_by_role("region", name="Training own-pictures")
    done = training.get_by_text("Done", exact=True)
    expect(done).to_be_visible(timeout=4 * PATIENT)  # a process of lower priority than all others
    expect(training.get_by_text("a batch of 40 is larger")).to_contain_text("a “Batch size” of")
    training.get_by_role("button", name="Use it").click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("own-pictures")
    page.get_by_role("button", name="Draw", exact=True).click()
    stage = page.get_by_role("region", name="Pictures")
    expect(stage.get_by_role("img").first).to_be_visible()

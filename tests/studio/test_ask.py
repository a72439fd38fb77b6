"""Ask: chats with a language model, and questions about pictures."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.server.running import EVERY_STEP, Running, run_service
from tests.studio.conftest import Open
from tests.systems.clip import tiny_clip
from tests.systems.gemma.tiny_gguf import write_gguf
from tests.systems.paligemma.test_pipeline import save_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One with a model that talks and one that sees."""
    folder = tmp_path_factory.mktemp("ask")
    write_gguf(folder / "talker.gguf")
    models = (str(folder / "talker.gguf"), str(save_tiny(folder / "eye")))
    with run_service(folder / "home", limits=EVERY_STEP, models=models) as running:
        yield running


@pytest.fixture
def pairs(tmp_path: Path) -> list[Path]:
    return sorted(tiny_clip.pictures(tmp_path / "pairs", 4).rglob("*.png"))[:3]


def test_a_chat_is_written_as_it_comes_and_stays(open_page: Open, service: Running) -> None:
    page = open_page("ask")
    for number, message in enumerate(("a red circle", "a blue square"), 1):
        page.get_by_label("Message").fill(message)
        page.keyboard.press("Enter")
        answers = page.get_by_role("region", name="Answers").get_by_role("article")
        expect(answers).to_have_count(number)
        expect(page.get_by_role("region", name="Answers")).to_have_attribute("aria-busy", "false")
    second, first = service.http.get("/api/jobs", params={"limit": 2}).json()
    assert second["request"]["turns"] == ["a red circle", first["result"]["values"]["text"]]
    page.reload()
    expect(answers).to_have_count(2)
    expect(answers.nth(1)).to_contain_text(second["result"]["values"]["text"].strip()[:20])


def test_a_picture_is_asked_about(open_page: Open, pairs: list[Path], service: Running) -> None:
    page = open_page("ask")
    page.locator("input[type=file]").set_input_files(pairs[0])
    expect(page.get_by_role("img", name="Chosen")).to_be_visible()
    page.get_by_role("button", name="Find things").click()
    page.get_by_label("What to find").fill("a red circle")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("list", name="Boxes")).to_be_attached()
    job = service.http.get("/api/jobs", params={"limit": 1}).json()[0]
    assert job["request"]["task"] == "detect" and job["request"]["labels"] == ["a red circle"]

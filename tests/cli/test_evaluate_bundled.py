"""`triptych evaluate NAME`: the figures of a card beside those measured, and what was left out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.weights.test_bundled_models import KEEP, box  # noqa: F401
from triptych import training as runs
from triptych.cli.evaluate import find_figure
from triptych.cli.main import run
from triptych.fields import to_json
from triptych.requests import TrainTextToImage
from triptych.weights.bundled_models import CARD, Figure

FIELD = "pictures.0.nearest.all.counted"
FIGURES = (
    Figure("as many objects", 0.25, "triptych evaluate small --prompts 2", field=FIELD),
    Figure("rank 1 by the judge", 0.6, "python benchmarks/emoji_judge.py judge"),
)


@pytest.fixture
def measured(box: Path) -> Path:  # noqa: F811
    """The bundled model `small` with two figures, trained on the built-in scenes."""
    folder = box / "small"
    (folder / CARD).write_text(json.dumps(to_json(replace(KEEP, figures=FIGURES))))
    runs.adopt(folder, TrainTextToImage())
    return folder


def test_figures_stand_beside_those_of_the_card(measured: Path, capsys) -> None:
    words = ["evaluate", "small", "--prompts", "2", "--steps", "1", "--json"]
    assert run(words) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    here = figures["card"][0]["here"]
    counted = figures["pictures"][0]["nearest"]["all"]["counted"]
    assert here == counted["right"] / counted["of"] and figures["card"][0]["card"] == 0.25
    assert f"as many objects: {here:.4g} here, 0.25 on the card" in said.err
    assert "left out: rank 1 by the judge, 0.6 on the card (python benchmarks" in said.err
    assert Path("evaluation/small/text-to-image.json").is_file()
    assert not (measured / "evaluation").exists() and not Path("runs").exists()


def test_without_its_data_all_figures_are_left_out(measured: Path, capsys) -> None:
    (measured / "run.json").unlink()
    training = replace(TrainTextToImage().training, data="/home/me/emoji")
    runs.adopt(measured, TrainTextToImage(training))
    assert run(["evaluate", "small", "--json"]) == 0
    said = capsys.readouterr()
    assert "was trained on ten pictures. Without that no figure can be measured: --data" in said.err
    assert said.err.count("left out: ") == 2
    assert [row["here"] for row in json.loads(said.out)["card"]] == [None, None]
    assert not Path("evaluation").exists()
    assert run(["evaluate", "small", "--data", "nowhere"]) == 3
    assert "no source 'nowhere'" in capsys.readouterr().err
    words = ["evaluate", "small", "--data", "scenes-one", "--prompts", "2", "--steps", "1"]
    assert run(words) == 0
    assert "as many objects: " in capsys.readouterr().err


def test_a_figure_is_found_by_its_place() -> None:
    figures = {"a": [{"b": {"right": 1, "of": 4}}, {"c": 0.5}], "d": {"right": 0, "of": 0}}
    assert find_figure(figures, "a.0.b") == 0.25
    assert find_figure(figures, "a.1.c") == 0.5 and find_figure(figures, "a.0.b.of") == 4
    assert find_figure({"at": {1: 0.5, 10: 0.75}}, "at.10") == 0.75  # ranks are numbers
    for missing in ("a.2.c", "a.1.d", "a.1", "a.x", "d", "a.1.c.e"):
        assert find_figure(figures, missing) is None
    assert find_figure({"a": True, "b": "0.5"}, "a") is find_figure({"b": "0.5"}, "b") is None

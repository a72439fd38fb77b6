"""What is written: JSON that equals the report, a page with every number, plots."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.scores.toy import Bars, draw, trained_judge
from tests.systems.class_to_image.test_judge import finish
from triptych.scores import style
from triptych.systems.class_to_image.judge import evaluate_class_conditional
from triptych.systems.class_to_image.report_files import write_report


@pytest.fixture(scope="module")
def report():
    labels = torch.arange(300) % 3
    judge = trained_judge(draw(labels, 50_000), labels, steps=40)
    return finish(
        evaluate_class_conditional(
            draw,
            Bars("train", 300, 10_000),
            Bars("test", 90, 20_000),
            judge,
            train_judge=lambda images, labels: trained_judge(images, labels, steps=5),
            samples_per_class=30,
            seed=11,
        )
    )[0]


def test_json_page_and_plots(report, tmp_path):
    files = write_report(report, tmp_path / "evaluation", command="triptych evaluate runs/x")
    names = ["report.json", "report.md", "classes.png", "confusion.png", "neighbours.png"]
    assert [f.name for f in files] == names and all(f.parent.name == "evaluation" for f in files)

    data = json.loads(files[0].read_text(), parse_constant=pytest.fail)  # no NaN: it is not JSON
    assert data["environment"]["command"] == "triptych evaluate runs/x"
    assert data["environment"]["torch"] == torch.__version__
    assert data["environment"]["cores"] >= 1 and data["environment"]["cpu"]
    assert data["seed"] == 11 and data["samples"] == 90
    assert data["distance"]["kernel"]["value"] == report.distance.kernel.value
    assert data["classes"][2]["name"] == "both"
    assert data["accuracy"]["confusion"] == [list(row) for row in report.accuracy.confusion]
    assert len(data["quantiles"]) == len(data["pixels"]["samples"])

    page = files[1].read_text()
    for shown in (
        f"{report.accuracy.overall.value:.2%}",
        f"{report.distance.frechet.value:.3g}",
        f"{report.score.samples.value:.2%}",
        f"{report.prdc.density:.3f}",
        "chance 33.3%",
        "seed 11",
        "triptych evaluate runs/x",
    ):
        assert shown in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {4, 8, 9}  # three tables, every row with all its cells

    for file in files[2:]:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert pixels.shape[1] > 600 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_without_matplotlib_numbers_are_kept_and_the_command_is_named(
    report, tmp_path, monkeypatch
):
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'triptych\[evaluation\]'"):
        write_report(report, tmp_path, command="x")
    assert {f.name for f in tmp_path.iterdir()} == {"report.json", "report.md"}

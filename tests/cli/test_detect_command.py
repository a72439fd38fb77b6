"""`triptych detect` as it is typed, with a model of mean colours in place of a checkpoint."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import triptych
from tests.systems.detection.colours import BACKGROUND, PAINT, colour_model
from triptych import loading
from triptych.cli.main import run
from triptych.requests import Detect
from triptych.systems.detection import pipeline
from triptych.vision.images import open_picture, read_request, save_picture


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A red thing on a white ground of 128 x 64, and `load` answered by the model of colours."""
    monkeypatch.setattr(loading, "load", lambda *_: colour_model(size=128))
    pixels = np.full((64, 128, 3), 234, np.uint8)
    pixels[16:48, 80:112] = PAINT["red"][0]
    save_picture(tmp_path / "p.png", pixels)
    return tmp_path / "p.png"


def words(picture: Path, *more: str) -> list[str]:
    known = ["--templates", "name", "--pool", "1", "--extent", "0.5", "--background", *BACKGROUND]
    return ["detect", str(picture), "--labels", "red", "blue star", *known, *more]


def test_people_read_rows_and_what_was_not_found(picture: Path, capsys) -> None:
    assert run(words(picture)) == 0
    shown = capsys.readouterr()
    score, *box, label = shown.out.split()
    assert label == "red" and float(score) > 0.9
    assert [int(x) for x in box] == pytest.approx([80, 16, 112, 48], abs=2)
    assert "1 box in 128 x 64 pixels" in shown.err and "not found: blue star" in shown.err


def test_json_is_one_object_and_names_no_folder(picture: Path, capsys) -> None:
    assert run(words(picture, "--json", "--model", "/some/where/clip")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["picture"] == "p.png" and (data["width"], data["height"]) == (128, 64)
    assert [box["label"] for box in data["boxes"]] == ["red"]
    assert data["request"]["labels"] == ["red", "blue star"]
    assert "/some/where" not in json.dumps(data)


@pytest.mark.parametrize("method", ["dense", "window", "window-batched"])
def test_pictures_and_boxes_are_written(picture: Path, tmp_path: Path, method, capsys) -> None:
    out = tmp_path / "found"
    small = ["--method", method, "--windows", "2", "--stride", "2"]
    assert run(words(picture, *small, "--out", str(out), "--format", "yolo", "--json")) == 0
    names = {Path(f).name for f in json.loads(capsys.readouterr().out)["files"]}
    assert names == {p.name for p in out.iterdir()}
    assert names == {
        "p-boxes.png",
        "p-heat-00-red.png",
        "p-heat-01-blue-star.png",
        "p.txt",
        "classes.txt",
    }
    assert (out / "p.txt").read_text().startswith("0 0.7")
    assert (out / "classes.txt").read_text() == "red\nblue star\n"
    drawn, before = open_picture(out / "p-boxes.png"), open_picture(picture)
    assert drawn.shape == before.shape and (drawn != before).any()
    hot = open_picture(out / "p-heat-00-red.png").astype(int)
    assert hot[32, 96].sum() > hot[32, 20].sum()  # over the thing, and not beside it
    recorded = read_request(out / "p-boxes.png")
    assert recorded is not None and recorded["request"]["method"] == method


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "json"])
def test_each_form_goes_to_stdout(picture: Path, form: str, capsys) -> None:
    assert run(words(picture, "--format", form)) == 0
    text = capsys.readouterr().out
    if form == "voc":
        assert ElementTree.fromstring(text).findtext("object/name") == "red"
    elif form == "yolo":
        assert text.split()[0] == "0" and len(text.split()) == 6
    else:
        data = json.loads(text)
        assert len(data["annotations" if form == "coco" else "boxes"]) == 1


def test_several_pictures(picture: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The model is loaded once, the labels are embedded once, and a bad picture is left out."""
    loads, embedded = [], []
    monkeypatch.setattr(loading, "load", lambda *_: loads.append(1) or colour_model(size=128))
    embed = pipeline.embed_queries
    monkeypatch.setattr(pipeline, "embed_queries", lambda *a: embedded.append(1) or embed(*a))
    other = tmp_path / "other" / "p.png"
    other.parent.mkdir()
    save_picture(other, np.full((32, 32, 3), 234, np.uint8))
    (tmp_path / "bad.png").write_text("<html>")
    given = words(picture, "--json", "--out", str(tmp_path / "found"), "--format", "voc")
    given[2:2] = [
        str(tmp_path / "other"),
        str(tmp_path / "bad.png"),
        str(tmp_path / "gone.png"),
        str(other),
    ]
    assert run(given) == 3
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [(row["picture"], row["width"]) for row in rows] == [("p.png", 128), ("p.png", 32)]
    assert [len(row["boxes"]) for row in rows] == [1, 0]
    assert "other is a folder: give its pictures" in shown.err
    assert "bad.png: an HTML page" in shown.err and "gone.png" in shown.err
    assert len(loads) == len(embedded) == 1
    files = {path.name for path in (tmp_path / "found").iterdir()}
    assert {"p-boxes.png", "p.xml", "p-2-boxes.png", "p-2.xml", "p-2-heat-00-red.png"} <= files
    assert len(files) == 8


def test_labels_of_yolo_files_are_not_exchanged(picture: Path, tmp_path: Path, capsys) -> None:
    out = ["--out", str(tmp_path / "found"), "--format", "yolo"]
    assert run(words(picture, *out)) == run(words(picture, *out)) == 0
    assert (tmp_path / "found" / "p-2.txt").exists()
    swapped = [
        "blue star" if w == "red" else "red" if w == "blue star" else w for w in words(picture)
    ]
    assert run([*swapped, *out]) == 2
    assert "classes.txt lists other labels (red, blue star)" in capsys.readouterr().err


def test_bad_input_has_its_exit_code(picture: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "no.png").write_text("<html>")
    for path, says in ((tmp_path / "no.png", "an HTML page"), (tmp_path / "gone.png", "No such")):
        assert run(words(path)) == 3
        assert says in capsys.readouterr().err
    assert run(words(picture, "--scales", "12")) == 3
    assert "choose a smaller scale" in capsys.readouterr().err
    assert run(words(picture, "--json", "--format", "coco")) == 2
    usage = [words(picture, "--threshold", "2"), words(picture, "--method", "guess")]
    for wrong in (["detect", str(picture)], ["detect", "--labels", "a"], *usage):
        assert run(wrong) == 2


def test_a_model_that_is_not_there_is_named(tmp_path: Path, capsys) -> None:
    save_picture(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8))
    assert run(["detect", str(tmp_path / "p.png"), "--labels", "a", "--model", "gone"]) == 3
    assert "no model 'gone'" in capsys.readouterr().err


def test_python_runs_the_same_request(picture: Path) -> None:
    asked = Detect(str(picture), ("red",), templates=("name",), background=BACKGROUND)
    *_, result = triptych.run(asked, colour_model(size=128))
    assert result.names == ("red",)
    with pytest.raises(ValueError, match="no request 7"):
        triptych.run(7)  # type: ignore[arg-type]

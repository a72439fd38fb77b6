"""`triptych classify` as people use it: a few photos, then a folder whose classes are known."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.cli.main import run
from triptych.fields import to_json
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.text.tokenizer import train_tokenizer
from triptych.train.checkpoint import export
from triptych.vision.images import open_picture
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Card


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small CLIP with random weights, in a folder as training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a photo of a dog", "a photo of a cat"] * 3, 600, 20)
    text = TextConfig(tokenizer.vocabulary, 20, 32, 1, 4, 64, end=tokenizer.config.end)
    config = ClipConfig(16, VitConfig(16, 8, 32, 1, 4, 64), None, text)
    transform = ImageTransform(16)
    card = Card("clip", to_json(config), tokenizer=tokenizer.config, transform=transform)
    export(folder, Clip(config), to_json(card))
    tokenizer.save(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = draws.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_a_table_for_people(model, photos, capsys):
    picture = str(photos / "cat" / "0.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = [picture, str(photos / "broken.png"), "--labels", "cat", "dog", "a red bus"]
    assert run(["classify", *words, "--model", str(model), "--top", "2"]) == 3  # one is broken
    out, err = capsys.readouterr()
    first, *rows = out.splitlines()
    assert first == picture and len(rows) == 2
    assert all("cosine" in row and "% of these labels" in row for row in rows)
    assert "skipped" in err and "broken.png" in err


@pytest.mark.parametrize(
    ("good", "bad", "folder", "code"),
    [(1, 5, False, 3), (1, 1, False, 3), (12, 1, False, 3), (12, 1, True, 0), (12, 2, True, 3)],
)
def test_pictures_that_cannot_be_read_are_told_by_the_exit_code(
    model, tmp_path, capsys, good, bad, folder, code
):
    """One that was named, or more than a tenth of a folder; the others are answered for."""
    names = [tmp_path / f"{number}.png" for number in range(good + bad)]
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(name)
        if number >= good:
            name.write_bytes(b"\x89PNG\r\n\x1a\n")
    words = [str(tmp_path)] if folder else list(map(str, names))
    options = ["--labels", "cat", "dog", "--model", str(model), "--json"]
    assert run(["classify", *words, *options]) == code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert len(found["pictures"]) == good and len(found["skipped"]) == bad
    said = f"{bad} of {good + bad} pictures could not be read"
    assert (said in err) == (code == 3)


def test_names_that_are_not_utf8_are_printed(model, tmp_path, capsys):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Image.new("RGB", (9, 9)).save(name)
    for given in (name, str(tmp_path)):
        assert run(["classify", given, "--labels", "a", "b", "--model", str(model)]) == 0
        capsys.readouterr().out.encode()


def test_a_missing_picture_is_named_before_the_model_is_loaded(capsys):
    assert run(["classify", "nowhere.png", "--labels", "a", "b", "--model", "nothing"]) == 3
    assert "nowhere.png: No such file" in capsys.readouterr().err


def test_json_is_one_object_with_cosines_and_probabilities(model, photos, capsys):
    words = ["classify", str(photos), "--labels", "cat", "dog", "bus", "--model", str(model)]
    assert run([*words, "--json", "--templates", "photo", "art of {}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reads"] == "softmax" and len(found["pictures"]) == 12
    assert found["templates"] == ["a photo of a {}.", "art of {}"]
    for row in found["pictures"]:
        cosines = [fit["cosine"] for fit in row["labels"]]
        shares = [fit["probability"] for fit in row["labels"]]
        assert cosines == sorted(cosines, reverse=True) and sum(shares) == pytest.approx(1)
        logits = found["scale"] * np.array(cosines)
        assert shares == pytest.approx(list(np.exp(logits) / np.exp(logits).sum()), rel=1e-5)


def test_the_matrix_is_a_picture(model, photos, tmp_path, capsys):
    path = tmp_path / "new" / "matrix.png"
    words = ["classify", str(photos), "--labels", "cat", "dog", "--model", str(model)]
    assert run([*words, "--matrix", str(path)]) == 0
    assert open_picture(path).shape[2] == 3
    assert run([*words, "--matrix", str(tmp_path / "matrix.jpg")]) == 2
    assert "should end in .png" in capsys.readouterr().err


def test_a_folder_of_classes_is_judged(model, photos, tmp_path, capsys):
    out = tmp_path / "report"
    words = ["classify", str(photos), "--labels", "auto", "--model", str(model), "--shots", "1"]
    assert run([*words, "--out", str(out), "--batch", "4", "--json"]) == 0
    printed, err = capsys.readouterr()
    found = json.loads(printed)
    assert found == json.loads((out / "report.json").read_text())
    zero = found["zero_shot"]
    assert np.sum(zero["confusion"]) == found["pictures"] == 12
    assert zero["top1"]["value"] == pytest.approx(np.trace(zero["confusion"]) / 12)
    assert zero["top1"]["chance"] == 0.5 and len(zero["calibration"]["bins"]) == 15
    assert [few["head"] for few in found["few_shot"]] == ["nearest mean", "probe from text"]
    for name in ("confusion.png", "reliability.png", "few-shot.png"):
        assert open_picture(out / name).std() > 5
    assert "chance 50.00%" in err and "33%" in err and str(photos) not in printed


def test_without_matplotlib_the_report_is_written_and_the_plots_are_named(
    model, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("triptych.scores.style.find_spec", lambda _: None)
    common = ["--out", str(tmp_path / "report"), "--limit", "12"]
    classify = ["classify", str(photos), "--labels", "auto", "--model", str(model)]
    for words in (classify, ["probe", str(model), str(photos)]):
        assert run([*words, *common]) == 0
        err = capsys.readouterr().err
        assert "plots need matplotlib: pip install 'triptych[evaluation]'" in err
        assert (tmp_path / "report" / "report.json").exists()
    assert not list((tmp_path / "report").glob("*.png"))


def test_a_cold_start_loads_nothing_it_does_not_use(model, photos):
    """A second and more on two cores: scipy, scikit-learn, matplotlib, torch's compiler, ... Nor
    does building a model of a usual size on the meta device.
    """
    code = f"""
import sys
from triptych.cli.main import run
assert run(["classify", {str(photos / "cat" / "0.png")!r}, "--labels", "a", "b",
            "--model", {str(model)!r}]) == 0
from triptych.systems.siglip.model import Siglip, SiglipConfig
from triptych.weights.skeleton import skeleton
skeleton(lambda: Siglip(SiglipConfig()))
heavy = {{"scipy", "sklearn", "matplotlib", "sympy", "torch._dynamo", "torch._inductor",
         "rich.progress"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.png", "--labels", "a"], 3, "nowhere.png"),
        (["nowhere.png"], 2, "--labels auto"),
        (["nowhere.png", "--labels", "a", "a"], 2, "there twice"),
        (["--labels", "a", "b"], 2, "PICTURES is missing"),
        (["nowhere.png", "--labels", "a", "--templates", "foto"], 3, "Did you mean 'photo'"),
        (["nowhere.png", "--labels", "a", "--shots", "2"], 2, "--labels auto"),
        (["nowhere", "--labels", "auto"], 3, "no source"),
        (["nowhere.png", "--labels", "none.txt"], 3, "cannot be read"),
    ],
)
def test_nonsense_gets_a_sentence_and_a_code(model, words, code, said, capsys):
    assert run(["classify", *words, "--model", str(model)]) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())

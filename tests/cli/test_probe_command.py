"""`triptych probe`: classes learned on a frozen model, by a fit that scikit-learn repeats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from triptych.cli.main import run
from triptych.fields import to_json
from triptych.loading import load
from triptych.systems.classification import frozen
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.text.tokenizer import train_tokenizer
from triptych.train.checkpoint import export
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Card


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights: random features of pictures still tell digits apart."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a photo of a dog"] * 3, 600, 20)
    text = TextConfig(tokenizer.vocabulary, 20, 32, 1, 4, 64, end=tokenizer.config.end)
    config = ClipConfig(24, VitConfig(8, 4, 32, 1, 4, 64), None, text)
    card = Card("clip", to_json(config), tokenizer=tokenizer.config, transform=ImageTransform(8))
    export(folder, Clip(config), to_json(card))
    tokenizer.save(folder)
    return folder


def folder_of(root: Path, classes: tuple[str, ...], each: int, seed: int) -> Path:
    """Pictures of one grey a class, with noise."""
    draws = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            grey = 60 + 40 * len(name) + draws.integers(0, 20, (8, 8, 3))
            Image.fromarray(grey.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.mark.slow
def test_digits_are_learned_from_a_frozen_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The built-in handwriting: every number again from the written classifier, and the classifier
    again by scikit-learn.
    """
    out = tmp_path / "report"
    words = ["probe", str(model), "digits", "--shots", "2", "--seeds", "0", "--out", str(out)]
    assert run([*words, "--limit", "300", "--dtype", "float32", "--json"]) == 0
    printed, err = capsys.readouterr()
    found = json.loads(printed)
    top = found["linear_probe"]["top1"]
    assert (found["train"], found["test"]) == (300, 297) == (300, top["count"])
    assert top["chance"] < 0.2 < 0.45 < top["low"] < top["value"] < top["high"]
    assert top["value"] == pytest.approx(np.trace(found["linear_probe"]["confusion"]) / 297)
    best = max(found["validation"], key=lambda tried: tried["accuracy"])
    assert found["penalty"] == best["penalty"] and len(found["validation"]) == 9
    assert [(few["head"], few["shots"], len(few["draws"])) for few in found["few_shot"]] == [
        ("nearest mean", 2, 1), ("probe", 2, 1),
    ]  # fmt: skip
    assert "top-1" in err and "chance" in err and str(tmp_path) not in printed

    written = json.loads((out / "report.json").read_text())
    assert written.items() >= found.items() and written["environment"]["threads"]
    assert (out / "confusion.png").exists() and (out / "reliability.png").exists()
    head = load_file(out / "probe.safetensors")
    loaded = load(str(model), dtype="float32")
    train, test = (
        list(frozen.embed_gallery(loaded, part))[-1]
        for part in frozen.train_and_test("digits", limit=300)
    )
    seen = (test.features @ head["weight"].T + head["bias"]).argmax(1)
    assert float((seen == test.labels).double().mean()) == pytest.approx(top["value"])
    strength = 1 / (found["penalty"] * len(train.labels))
    peer = LogisticRegression(C=strength, max_iter=20_000, tol=1e-7)
    peer.fit(train.features.double().numpy(), train.labels.numpy())
    agree = peer.predict(test.features.double().numpy()) == seen.numpy()
    assert agree.mean() > 0.98


def test_two_sources_are_matched_by_the_names_of_their_classes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second has fewer classes, whose numbers are others; a broken file is named. What is
    written is what was printed, and a classifier that is right.
    """
    out = tmp_path / "report"
    learned = folder_of(tmp_path / "learned", ("a", "bb", "ccc"), 10, 0)
    judged = folder_of(tmp_path / "judged", ("bb", "ccc"), 4, 1)
    (judged / "bb" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["probe", str(model), str(learned), "--test", str(judged)]
    assert run([*words, "--out", str(out), "--dtype", "float32", "--json"]) == 0
    printed, err = capsys.readouterr()
    found = json.loads(printed)
    assert found["train"] == 30 and found["classes"] == ["a", "bb", "ccc"]
    assert found["linear_probe"]["confusion"] == [[0, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert [row["name"] for row in found["skipped"]] == ["bb/broken.png"]
    assert "broken.png" in err
    assert json.loads((out / "report.json").read_text()).items() >= found.items()
    assert (out / "confusion.png").exists() and (out / "reliability.png").exists()
    head, loaded = load_file(out / "probe.safetensors"), load(str(model), dtype="float32")
    gallery, _ = frozen.train_and_test(str(learned), str(judged))
    seen = list(frozen.embed_gallery(loaded, gallery))[-1]
    answers = (seen.features @ head["weight"].T + head["bias"]).argmax(1)
    assert torch.equal(answers, seen.labels)

    folder_of(tmp_path / "others", ("a", "zebra"), 2, 2)
    assert run([*words[:-1], str(tmp_path / "others")]) == 3
    assert "has classes that" in (said := capsys.readouterr().err) and "zebra" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "--shots", "500", "--limit", "100"], "need 504 pictures of each class"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_probed_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(["probe", str(model), *words]) == 3
    assert said in capsys.readouterr().err

"""A bundled model is complete, half as large, and draws what the run draws."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import triptych
from tests.systems.clip import tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion
from tests.systems.unclip import tiny_unclip
from tests.weights.test_bundled_models import KEEP
from triptych import bundle
from triptych import training as runs
from triptych.bundle import round_weights, without_folders, write_bundle
from triptych.cli.main import run
from triptych.fields import to_json
from triptych.loading import load
from triptych.requests import (
    Answers,
    TextToImage,
    TrainClip,
    Training,
    TrainTextToImage,
    TrainUnclip,
    TrainVlm,
)
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.systems.cvae.request import TrainCvae
from triptych.systems.paligemma import examples
from triptych.text.known_words import KnownWords, read_known_words
from triptych.train.checkpoint import export
from triptych.weights import bundled_models
from triptych.weights.bundled_models import read_card
from triptych.weights.files.weight_file import read_weights
from triptych.weights.loaded import Card

TRAINED = TrainTextToImage(autoencoder="/home/me/runs/coder", clip="runs/clip", cache="cached")


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_stable_diffusion.saved(tmp_path_factory.mktemp("runs") / "t2i")
    runs.adopt(folder, TRAINED)
    KnownWords(("red cat", "blue dog"), ("blue", "cat", "dog", "red")).save(folder)
    return folder


def test_a_text_to_image_model_alone_is_complete(text_run: Path, tmp_path: Path) -> None:
    dest = tmp_path / "new" / "small"
    likeness, size = write_bundle(text_run, dest, KEEP)
    assert likeness.startswith("2 pictures in bfloat16 and in float32: ") and size.endswith("bytes")
    before, after = (read_weights(f / "model.safetensors") for f in (text_run, dest))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], x.bfloat16()) for name, x in before.items())
    assert (dest / "model.safetensors").stat().st_size < 0.6 * (
        text_run / "model.safetensors"
    ).stat().st_size
    assert sorted(p.name for p in dest.iterdir()) == [
        "card.json", "config.json", "model.safetensors", "run.json", "tokenizer.json", "words.json"
    ]  # fmt: skip
    assert read_card(dest) == KEEP and read_known_words(dest) == read_known_words(text_run)
    assert runs.stored(dest) == replace(TRAINED, autoencoder="coder", clip="clip")
    request = TextToImage("red cat", seed=3, steps=2, precision="float32")
    drawn = [list(triptych.run(request, load(str(f), dtype="float32"))) for f in (text_run, dest)]
    ours, theirs = (steps[-1].pictures.astype(float) for steps in drawn)
    error = np.square(ours - theirs).mean()
    assert 0 < error < 255**2 / 1000  # 30 dB


def test_a_model_of_classes_and_a_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CvaeConfig(8, 8, 1, "label", 3, 2, "mlp", (8,))
    folder = tmp_path / "cvae"
    folder.mkdir()
    runs.adopt(folder, TrainCvae())
    export(folder, Cvae(config), to_json(Card("cvae", to_json(config), classes=("a", "b", "c"))))
    likeness, _ = write_bundle(folder, tmp_path / "out", KEEP)
    assert likeness.startswith("10 pictures in bfloat16")
    assert next(load(str(tmp_path / "out")).model.parameters()).dtype == torch.float32
    clip = tiny_clip.saved(tiny_clip.tiny_clip(), tmp_path / "clip")
    runs.adopt(clip, TrainClip())
    likeness, _ = write_bundle(clip, tmp_path / "clip-out", KEEP)
    assert likeness.startswith("cosine of embeddings in bfloat16")


def test_a_dall_e_2(tmp_path: Path, monkeypatch, capsys) -> None:
    """All parts in one folder, which works as the name of a model; statistics stay exact. Random
    weights draw noise, which rounding changes: how much is measured on trained ones.
    """
    monkeypatch.setattr(bundle, "LEAST_PSNR", 5.0)
    monkeypatch.setattr(bundled_models, "FOLDER", tmp_path / "box")
    run_folder = tiny_unclip.saved(tmp_path / "unclip")
    runs.adopt(run_folder, TrainUnclip(clip="runs/clip"))
    likeness, _ = write_bundle(run_folder, tmp_path / "box" / "small", KEEP)
    assert likeness.startswith("8 pictures in bfloat16 and in float32: ")
    before, after = (
        read_weights(f / "model.safetensors") for f in (run_folder, tmp_path / "box" / "small")
    )
    for name in ("prior.mean", "autoregressive.thresholds", "components.directions"):
        assert torch.equal(after[name], before[name]), name
    assert after["decoder.image_proj.weight"].dtype == torch.bfloat16
    assert runs.stored(tmp_path / "box" / "small") == TrainUnclip(clip="clip")
    monkeypatch.chdir(tmp_path)
    assert run(["generate", "a red cat", "--model", "small", "--seed", "1", "--steps", "1"]) == 0
    assert "1 picture in pictures" in capsys.readouterr().err


def test_a_temperature_and_counts_stay_as_they_are() -> None:
    assert round_weights(torch.tensor(100.3)).item() == torch.tensor(100.3).item()
    assert round_weights(torch.tensor([1, 300])).dtype == torch.int64
    assert round_weights(torch.tensor([1.001])).item() == 1.0


def test_paths_of_this_machine_are_left_out() -> None:
    given = {"a": "/home/me/x", "b": {"c": ["runs/y", "C:\\data\\z", 1]}, "d": ""}
    assert without_folders(given) == {"a": "x", "b": {"c": ["y", "z", 1]}, "d": ""}


def test_other_pictures_are_refused_and_nothing_is_written(text_run, tmp_path, monkeypatch) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine").write_text("kept")
    monkeypatch.setattr(bundle, "round_weights", lambda x: (0.5 * x).bfloat16())
    with pytest.raises(ValueError, match=r"draws other pictures, .* below 30 dB"):
        list(write_bundle(text_run, tmp_path / "small", KEEP))
    clip = tiny_clip.saved(tiny_clip.tiny_clip(), tmp_path / "clip")
    runs.adopt(clip, TrainClip())
    with pytest.raises(ValueError, match=r"has a cosine of .* below 0.999"):
        list(write_bundle(clip, tmp_path / "small", KEEP))
    assert [p.name for p in (tmp_path / "small").iterdir()] == ["mine"]


def test_limits_are_those_of_the_package(text_run, tmp_path, monkeypatch) -> None:
    box = tmp_path / "box"
    monkeypatch.setattr(bundled_models, "FOLDER", box)
    monkeypatch.setattr(bundle, "compare", lambda before, after: "")
    list(write_bundle(text_run, box / "one", KEEP))
    monkeypatch.setattr(bundle, "MOST_BYTES", {"stable-diffusion": 1000})
    with pytest.raises(ValueError, match=r"two has .* at most 1,000 for one such model"):
        list(write_bundle(text_run, box / "two", KEEP))
    list(write_bundle(text_run, tmp_path / "two", KEEP))  # elsewhere it may have any size
    size = bundle.size_of(box / "one")
    monkeypatch.setattr(bundle, "MOST_BYTES", {"stable-diffusion": 2 * size})
    monkeypatch.setattr(bundle, "MOST_BYTES_TOGETHER", 2 * size - 1)
    with pytest.raises(ValueError, match=rf"beside {size:,} of other bundled models"):
        list(write_bundle(text_run, box / "two", KEEP))
    list(write_bundle(text_run, box / "one", KEEP))  # in place of itself


def test_the_command(text_run: Path, tmp_path: Path, capsys) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps(to_json(KEEP)))
    words = ["weights", "bundle", str(text_run), str(card), str(tmp_path / "out")]
    assert run(words) == 0
    said = capsys.readouterr().err
    assert " dB" in said and "parameters in" in said
    assert run(words) == 3 and "exists already" in capsys.readouterr().err
    assert run([*words, "--overwrite"]) == 0
    out = ["--out", str(tmp_path / "pictures"), "--steps", "1", "--seed", "0"]
    assert run(["generate", "a red catt", "--model", str(tmp_path / "out"), *out]) == 0
    said = capsys.readouterr().err
    assert "not trained on the words catt; the nearest of its names: 'red cat'" in said


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["RUN"], 2, "CARD and DEST are missing"),
        (["RUN", "none.json", "OUT"], 3, "none.json does not exist"),
        (["RUN", "bad.json", "OUT"], 3, "bad.json: the card lacks the field 'title'"),
        (["EMPTY", "card.json", "OUT"], 3, "is no run folder: it has no run.json"),
        (["RUN", "card.json", "card.json"], 2, "is a file"),
    ],
)
def test_bad_input(text_run, tmp_path, monkeypatch, capsys, words, code: int, error: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{}")
    Path("card.json").write_text(json.dumps(to_json(KEEP)))
    Path("EMPTY").mkdir()
    named = [str(text_run) if word == "RUN" else word for word in words]
    assert run(["weights", "bundle", *named]) == code
    assert error in capsys.readouterr().err and not Path("OUT").exists()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    config = CvaeConfig(8, 8, 1, "image", 2, 2, "mlp", (8,))
    (tmp_path / "run").mkdir()
    runs.adopt(tmp_path / "run", TrainCvae())
    export(tmp_path / "run", Cvae(config), to_json(Card("cvae", to_json(config), quadrants=1)))
    with pytest.raises(ValueError, match="is a cvae that completes pictures: models that draw"):
        list(write_bundle(tmp_path / "run", tmp_path / "out", KEEP))
    assert not (tmp_path / "out").exists()


def test_psnr_is_that_of_its_definition() -> None:
    flat = np.full((1, 4, 4, 3), 100, np.uint8)
    assert bundle._psnr(flat, flat + 1) == pytest.approx(48.1308, abs=1e-4)


def test_a_model_that_answers_is_complete_with_its_eye(tmp_path: Path, monkeypatch) -> None:
    """With its vocabulary; captions as before; one that answers otherwise is refused."""
    monkeypatch.setattr(examples, "LEARNED_FROM", 40)
    training = Training(data="scenes-two", size=32, steps=1, batch_size=2, device="cpu")
    eye = Answers(
        patch=8, stem=(4, 8, 8), image_width=16, image_layers=1, image_heads=2, vocabulary=330
    )
    sizes = {"width": 16, "layers": 1, "heads": 2, "head_width": 8, "hidden": 32}
    request = TrainVlm(training, eye, **sizes)
    recipe = runs.build(request)
    (tmp_path / "run").mkdir()
    runs.adopt(tmp_path / "run", request)
    recipe.export(tmp_path / "run", recipe.model)
    dest = tmp_path / "small"
    likeness, size = write_bundle(tmp_path / "run", dest, KEEP)
    assert "of the probability is the same" in likeness and size.endswith("bytes")
    before, after = (load(f"{f}", dtype="float32") for f in (tmp_path / "run", dest))
    assert after.language is not None and after.language.encode("a red") == before.language.encode(
        "a red"
    )
    weights = recipe.model.text.token.weight

    def turned(x: torch.Tensor) -> torch.Tensor:
        return (x.roll(1, 0) if x.shape == weights.shape else x).contiguous()

    monkeypatch.setattr(bundle, "round_weights", turned)
    with pytest.raises(ValueError, match="answers otherwise"):
        list(write_bundle(tmp_path / "run", tmp_path / "other", KEEP))

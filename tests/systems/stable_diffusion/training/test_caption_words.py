"""The words that a run folder records are those of its data."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.systems.clip import tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion
from triptych.data.captions import captions_of
from triptych.data.sources import open_source
from triptych.requests import Training, TrainTextToImage
from triptych.systems.stable_diffusion.training import caption_words as module
from triptych.systems.stable_diffusion.training.caption_words import caption_words
from triptych.text.known_words import KnownWords, read_known_words, words_of
from triptych.training import build
from triptych.vision.images import save_picture
from triptych.weights.files.weight_file import read_weights

CAPTIONS = ("red apple", "green apple", "red apple", "blue pear")


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    for number, caption in enumerate(CAPTIONS):
        path = tmp_path / ("test" if number == 3 else "train") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        save_picture(path, tiny_clip.picture(number))
        path.with_suffix(".txt").write_text(f"{caption}\n{caption}: fruit {number}\n")
    return tmp_path


def test_captions_give_their_first_lines_as_names(captioned: Path) -> None:
    source = open_source(str(captioned), size=16)
    words = ("0", "1", "2", "apple", "fruit", "green", "red")
    assert caption_words(source, ()) == KnownWords(("red apple", "green apple"), words)


def test_classes_give_their_names_and_the_words_of_templates(tmp_path: Path) -> None:
    for number, name in enumerate(("golden_retriever", "cat")):
        (tmp_path / "train" / name).mkdir(parents=True)
        save_picture(tmp_path / "train" / name / "0.png", tiny_clip.picture(number))
    found = caption_words(open_source(str(tmp_path), size=16), ("a photo of a {}",))
    assert found is not None and set(found.names) == {"golden retriever", "cat"}
    assert set(found.words) == {"a", "photo", "of", "golden", "retriever", "cat"}


def test_endless_data_has_words_and_no_names() -> None:
    source = open_source("scenes", size=32)
    found = caption_words(source, ())
    assert found is not None and not found.names
    read = {w for texts in captions_of(source, 10_000) for text in texts for w in words_of(text)}
    assert read <= set(found.words)


def test_a_list_that_would_be_incomplete_is_not_made(captioned: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_CAPTIONS", 2)
    assert caption_words(open_source(str(captioned), size=16), ()) is None


def test_a_run_records_them_and_takes_the_autoencoder_of_a_model(captioned, tmp_path) -> None:
    """One build: what it exports has the words of the data, and the coder it was told of."""
    whole = tiny_stable_diffusion.saved(tmp_path / "whole")
    request = TrainTextToImage(
        Training(data=str(captioned), size=16, batch_size=2, device="cpu"),
        autoencoder=str(whole),
        text_width=16,
        text_layers=1,
        widths=(16, 16),
        transformers=(0, 0),
        groups=8,
        head_width=8,
    )
    recipe = build(request)
    run = tmp_path / "run"
    run.mkdir()
    recipe.export(run, recipe.exported)
    assert read_known_words(run) == caption_words(open_source(str(captioned), size=16), ())
    ours, theirs = (read_weights(f / "model.safetensors") for f in (run, whole))
    coder = [name for name in theirs if name.startswith("autoencoder.")]
    assert coder and all(torch.equal(ours[name], theirs[name]) for name in coder)


def test_pixels_are_no_autoencoder(captioned, tmp_path) -> None:
    config = tiny_stable_diffusion.config(autoencoder=None, patch=2)
    unet = dataclasses.replace(config.unet, in_channels=12, out_channels=12)
    whole = tiny_stable_diffusion.saved(tmp_path / "w", dataclasses.replace(config, unet=unet))
    training = Training(data=str(captioned), size=16, device="cpu")
    with pytest.raises(ValueError, match="is a stable-diffusion, not an autoencoder"):
        build(TrainTextToImage(training, autoencoder=str(whole)))

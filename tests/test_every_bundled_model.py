"""Every model that comes with the package loads, and draws or answers."""

import numpy as np
import pytest

import triptych
from triptych.requests import Classify, ClassToImage, TextToImage
from triptych.text.known_words import words_of
from triptych.weights.bundled_models import bundled_folder, bundled_names, read_card
from triptych.weights.loaded import TWO_TOWERS, Loaded

NAMES = bundled_names()


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_draws_or_answers(name: str) -> None:
    loaded = triptych.load(str(bundled_folder(name)), precision="float32")
    assert loaded.name == name
    if loaded.card.model in TWO_TOWERS:
        answers(loaded)
    elif loaded.card.model == "stable-diffusion":
        draws_prompts(loaded)
    else:
        draws_classes(loaded)


def answers(loaded: Loaded) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    *_, found = triptych.run(Classify(list(noise), ["a red circle", "a blue star"]), loaded)
    np.testing.assert_allclose(found.probabilities().sum(1), 1, atol=1e-5)


def draws_prompts(loaded: Loaded) -> None:
    assert loaded.words is not None
    prompts = loaded.words.names[:1] or (" ".join(loaded.words.words[:3]),)
    *_, drawn = triptych.run(TextToImage(prompts, seed=0), loaded)
    check_pictures(drawn.pictures)
    assert not drawn.notes
    *_, other = triptych.run(TextToImage("a qwertyuiop", seed=0, steps=1), loaded)
    assert any("was not trained on the words qwertyuiop" in note for note in other.notes)


def draws_classes(loaded: Loaded) -> None:
    *_, drawn = triptych.run(ClassToImage(n=len(loaded.card.classes), seed=0), loaded)
    check_pictures(drawn.pictures)
    assert drawn.names == loaded.card.classes


def check_pictures(pictures: np.ndarray) -> None:
    assert pictures.dtype == np.uint8 and pictures.std() > 10  # not one grey


@pytest.mark.parametrize("name", NAMES)
def test_words_of_its_names_are_known(name: str) -> None:
    words = triptych.load(str(bundled_folder(name))).words
    if words is not None:
        assert {word for text in words.names for word in words_of(text)} <= set(words.words)


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_how_each_figure_is_measured(name: str) -> None:
    for figure in read_card(bundled_folder(name)).figures:
        ours = figure.command.startswith(f"triptych evaluate {name}")
        assert ours == bool(figure.field), figure.what

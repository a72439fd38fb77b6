"""What a seed promises, and that conditions reach the model."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.requests import ClassToImage
from triptych.running import run
from triptych.systems.class_to_image import pipeline as class_to_image
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.systems.wgan.model import Generator, WganConfig
from triptych.vision.images import resize_crop, save_picture
from triptych.weights.loaded import Card, Loaded

NAMES = ("cat", "dog", "7", "3")


def loaded(kind: str = "cvae", condition: str = "label") -> Loaded:
    torch.manual_seed(0)
    size = {"label": 4, "attributes": 3, "vector": 2}.get(condition, 0)
    if kind == "cvae":
        config = CvaeConfig(8, 8, 1, condition, size, 3, "mlp", (8,))
        model = Cvae(config)
    else:
        config = WganConfig(8, 8, 1, condition, size, 3, (8,), (8,))
        model = Generator(config)
    card = Card(
        kind,
        asdict(config),
        classes=NAMES if condition == "label" else (),
        attributes=("red", "round", "large") if condition == "attributes" else (),
        vector=("age", "weight") if condition == "vector" else (),
        vector_mean=(10.0, 5.0),
        vector_std=(2.0, 1.0),
        quadrants=2 if condition == "image" else 0,
    )
    return Loaded(kind, card, config, model.eval())


def pictures(model: Loaded, **fields) -> np.ndarray:
    *_, result = run(ClassToImage(**fields), model)
    return result.pictures


@pytest.mark.parametrize("kind", ["cvae", "wgan"])
def test_a_picture_does_not_depend_on_its_company(kind: str) -> None:
    model = loaded(kind)
    many = pictures(model, label="dog", n=70, seed=10)
    for i in (0, 1, 63, 64, 69):  # either side of a chunk's end
        (alone,) = pictures(model, label="dog", n=1, seed=10 + i)
        assert np.abs(many[i].astype(int) - alone.astype(int)).max() <= 1


def test_every_class_in_turn_is_each_class_alone() -> None:
    model = loaded()
    *_, turn = run(ClassToImage(n=8, seed=0), model)
    assert turn.names == NAMES * 2
    for i, name in enumerate(turn.names):
        (alone,) = pictures(model, label=name, n=1, seed=i)
        assert np.abs(turn.pictures[i].astype(int) - alone.astype(int)).max() <= 1


def test_a_class_name_is_not_mistaken_for_its_number() -> None:
    model = loaded()
    request = ClassToImage(label="3", seed=0)  # the class called 3 is number 3, called 7 number 2
    assert class_to_image.choose_labels(request, model.card) == [3] * 10
    request = ClassToImage(label="7", seed=0)
    assert class_to_image.choose_labels(request, model.card) == [2] * 10
    request = ClassToImage(label="1", seed=0)  # no class of this name: the number
    assert class_to_image.choose_labels(request, model.card) == [1] * 10


def test_attributes_and_vectors_arrive_as_the_model_was_trained() -> None:
    condition, names = class_to_image.choose_conditions(
        ClassToImage(attributes=("large", "red"), n=2), loaded(condition="attributes").card
    )
    assert condition is not None and condition.tolist() == [[1, 0, 1]] * 2
    assert names == ("large red",) * 2
    condition, _ = class_to_image.choose_conditions(
        ClassToImage(vector=(12.0, 5.0), n=1), loaded(condition="vector").card
    )
    assert condition is not None and condition.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("side", [8, 24])
def test_what_is_visible_of_a_picture_stays_and_the_rest_is_drawn(
    side: int, tmp_path: Path
) -> None:
    model, file = loaded(condition="image"), tmp_path / "half.png"
    shown = np.full((side, side, 3), 200, np.uint8)
    shown[:, : side // 2] = 40
    save_picture(file, shown)
    *_, result = run(ClassToImage(image=str(file), n=5, seed=0), model)
    assert result.names == ("half.png",) * 5 and not result.by_class
    visible, hidden = result.pictures[:, :, :4], result.pictures[:, :, 4:]  # two: the left half
    expected = resize_crop(shown[..., :1], 8)[:, :4]
    assert (np.abs(visible.astype(int) - expected) <= 1).all()
    assert (hidden.astype(float).std(0) > 0).all()  # one z each
    (alone,) = pictures(model, image=str(file), n=1, seed=3)
    assert np.abs(result.pictures[3].astype(int) - alone.astype(int)).max() <= 1


def test_a_picture_to_complete_must_be_there_and_sound(tmp_path: Path) -> None:
    model, text = loaded(condition="image"), tmp_path / "notes.png"
    text.write_text("no picture")
    for image, words in (
        ("", "--image FILE"),
        (str(tmp_path / "nowhere.png"), "nowhere.png: No such file"),
        (str(text), "notes.png: not a PNG"),
        (str(tmp_path), "not a regular file"),
    ):
        with pytest.raises(ValueError, match=words):
            pictures(model, image=image)
    with pytest.raises(ValueError, match="conditioned on label"):
        pictures(loaded(), image=str(text))
    with pytest.raises(ValueError, match="conditioned on an image to complete"):
        pictures(model, label="cat")
    silent = replace(model, card=replace(model.card, quadrants=0))  # written by an older version
    with pytest.raises(ValueError, match=r"quadrants.*run\.json"):
        pictures(silent, image=str(text))


def test_truncation_keeps_pictures_closer_to_one_another() -> None:
    model = loaded("wgan")
    spread = [
        pictures(model, label="cat", n=64, seed=0, truncation=t).astype(float).std(0).mean()
        for t in (0.0, 1.0, 0.1)
    ]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"n": 0}, "n must be"), ({"seed": -1}, "seed must be"), ({"truncation": -1}, "truncation")],
)
def test_requests_check_themselves(fields, words) -> None:
    with pytest.raises(ValueError, match=words):
        ClassToImage(**fields)

"""The plane of latent codes: the directions of a decoder whose change is known; its pictures."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

import triptych
from triptych.requests import LatentPlane
from triptych.systems.class_to_image.pipeline import sample_from_noise
from triptych.systems.cvae.model import Cvae, CvaeConfig, manifold
from triptych.systems.latent_plane.answer import to_answer
from triptych.systems.latent_plane.pipeline import find_plane
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Card, Loaded

CLASSES = tuple("0123456789")


def tiny(latent: int, condition: str = "label") -> Loaded:
    config = CvaeConfig(4, 4, 1, condition, 10, latent, "mlp", (8,), "gaussian")
    torch.manual_seed(0)
    card = Card("cvae", asdict(config), classes=CLASSES if condition == "label" else ())
    return Loaded("tiny", card, config, Cvae(config).eval())


def test_the_plane_is_where_pictures_change_most() -> None:
    """A decoder that is nearly linear: its directions are the singular vectors of its matrix."""
    loaded = tiny(4)
    torch.manual_seed(1)
    matrix = torch.randn(8, 4) * torch.tensor([0.1, 3.0, 0.2, 1.0])
    first, _, last = loaded.model.decoder.layers[0].linear, None, loaded.model.decoder.layers[-1]
    with torch.no_grad():
        first.weight[:, :4] = 1e-3 * matrix  # small: SiLU is nearly linear there, with slope 1/2
        first.weight[:, 4:] = 0
        first.bias.zero_()
        last.linear[0].weight.copy_(torch.eye(16, 8))  # at right angles, so that lengths stay
    plane, share = find_plane(loaded, torch.tensor([3]))
    _, values, expected = torch.linalg.svd(matrix)
    for found, right in zip(plane, expected[:2], strict=True):
        assert abs(float(found @ right)) == pytest.approx(1, abs=1e-2)
    assert torch.allclose(plane @ plane.T, torch.eye(2), atol=1e-5)
    squares = values.square()
    assert share == pytest.approx(float(squares[:2].sum() / squares.sum()), abs=1e-2)


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_pictures_are_those_of_their_points(latent: int) -> None:
    loaded = tiny(latent)
    points = ((0.0, 0.0), (1.5, -0.5))
    *_, drawn = triptych.run(LatentPlane("tiny", label="3", points=points), loaded)
    directions, _ = find_plane(loaded, torch.tensor([3]))
    noise = torch.tensor(points) @ directions
    expected = to_pictures(sample_from_noise(loaded, torch.tensor([3, 3]), noise))
    assert (drawn.pictures == expected).all()
    answer = to_answer(drawn, "tiny")
    assert [one.facts["point"] for one in answer.pictures] == [[0.0, 0.0], [1.5, -0.5]]
    *_, alone = triptych.run(LatentPlane(**answer.pictures[1].record["request"]), loaded)
    assert np.abs(alone.pictures[0].astype(int) - drawn.pictures[1]).max() <= 1


def test_the_grid_is_that_of_the_paper_and_the_class_the_first() -> None:
    *_, drawn = triptych.run(LatentPlane("tiny", side=3), tiny(2))
    assert np.allclose(drawn.request.points, manifold(3).numpy()) and drawn.request.label == "0"
    *_, drawn = triptych.run(LatentPlane("tiny", side=2), tiny(2, "none"))
    assert len(drawn.pictures) == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"side": 33}, "side must be 1 to 32"),
        ({"side": -3}, "side must be 1 to 32"),
        ({"points": [[1.0]]}, "points are two numbers each"),
        ({"points": [[9.0, 0.0]]}, "points are two numbers each"),
        ({"points": [[0.0, 0.0]] * 1025}, "at most 1,024"),
    ],
)
def test_what_is_no_plane_is_refused(changes, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        LatentPlane("tiny", **changes)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="conditioned on vector: a plane is drawn of a class"):
        list(triptych.run(LatentPlane("tiny"), tiny(2, "vector")))
    with pytest.raises(ValueError, match="has 0 numbers in its latent code"):
        list(triptych.run(LatentPlane("tiny"), tiny(0)))

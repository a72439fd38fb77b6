"""Pipeline of LatentPlane: the plane of latent codes on which pictures change most.

Dimensions: P points, N draws, Z latent, C channels, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.systems.class_to_image.pipeline import SAMPLE, choose_conditions, sample_from_noise
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.cvae.model import manifold
from triptych.systems.latent_plane.request import LatentPlane
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Load, Loaded

DRAWS = 32
"""Codes at which the change of pictures is measured."""
STEP = 0.1
"""Length of the differences, in standard deviations."""
MAX_LATENT = 512


@dataclass(frozen=True)
class PlaneDrawing:
    """A picture for each point."""

    request: LatentPlane
    """With its points and class."""
    pictures: UInt8[np.ndarray, "P H W C"]
    share: float
    """Of the change of pictures around the mean code: how much of it lies in the plane."""
    done: float = 1.0


def run(request: LatentPlane, load: Load) -> Iterator[PlaneDrawing]:
    """Finds the plane and draws the points; yields once.

    Raises:
        ValueError: the model is of another kind, has no latent code, or needs another condition
            than a class.
    """
    loaded = load(request.model, runtime.device())
    if loaded.card.model not in SAMPLE:
        kinds = " or ".join(SAMPLE)
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}; a plane of codes is of a {kinds}"
        )
    if not 1 <= loaded.config.latent <= MAX_LATENT:
        raise ValueError(
            f"{loaded.name} has {loaded.config.latent} numbers in its latent code; a plane needs 1 "
            f"to {MAX_LATENT}"
        )
    condition, label = _choose_class(request, loaded)
    points = request.points or tuple(map(_pair, manifold(request.side).tolist()))
    directions, share = find_plane(loaded, condition)
    noise = torch.tensor(points, dtype=torch.float32) @ directions
    images = _draw(loaded, condition, noise)
    request = replace(request, points=points, label=label)
    yield PlaneDrawing(request, to_pictures(images), share)


def find_plane(loaded: Loaded, condition: Tensor | None) -> tuple[Float[Tensor, "2 Z"], float]:
    """Two directions of unit length at right angles, along which pictures of a class change most,
    and their share of all change.

    They are the largest eigenvectors of the mean of J^T J, where J is the Jacobian of the pictures,
    by central differences at codes drawn from the prior. A code of two numbers keeps its axes.
    """
    latent = loaded.config.latent
    if latent == 1:
        return torch.tensor([[1.0], [0.0]]), 1.0
    if latent == 2:
        return torch.eye(2), 1.0
    steps = STEP * torch.eye(latent)
    change = torch.zeros(latent, latent, dtype=torch.float64)
    for draw in runtime.noise((latent,), range(DRAWS)):
        above, below = (_draw(loaded, condition, draw + sign * steps) for sign in (1, -1))
        slopes = ((above - below).flatten(1) / (2 * STEP)).double()  # (Z, pixels)
        change += slopes @ slopes.T / DRAWS
    values, vectors = torch.linalg.eigh(change)  # the largest last
    plane = vectors.T[[-1, -2]]
    largest = plane.gather(1, plane.abs().argmax(1, keepdim=True))
    total = float(values.clamp_min(0).sum())
    share = float(values[-2:].sum()) / total if total else 1.0
    return (plane * largest.sign()).float(), share


def _draw(
    loaded: Loaded, condition: Tensor | None, noise: Float[Tensor, "P Z"]
) -> Float[Tensor, "P C H W"]:
    repeated = None if condition is None else condition.expand(len(noise))
    return sample_from_noise(loaded, repeated, noise)


def _choose_class(request: LatentPlane, loaded: Loaded) -> tuple[Tensor | None, str]:
    """The class of all pictures and its name.

    Raises:
        ValueError: the model is conditioned on something else, or has no such class.
    """
    kind = loaded.card.config.get("condition")
    if kind not in ("label", "none"):
        raise ValueError(f"{loaded.name} is conditioned on {kind}: a plane is drawn of a class")
    conditions, names = choose_conditions(ClassToImage(label=request.label, n=1), loaded.card)
    return conditions, names[0]


def _pair(point: list[float]) -> tuple[float, float]:
    return point[0], point[1]

"""Memorisation: are samples closer to training pictures than held-out pictures are?

Some held-out pictures are close to training pictures too, so they are the baseline.

Dimensions: Q queries, N training pictures, M held-out pictures, D numbers of a picture.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from triptych.scores.accuracy import wilson_interval

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
QUERIES, BANK = 512, 8192  # rows and columns of a distance matrix at a time


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training picture."""

    samples: tuple[float, ...]
    """At the quantiles of QUANTILES."""
    held_out: tuple[float, ...]
    """The same for real pictures that the model has not seen."""
    threshold: float
    """The distance below which only the share `expected` of held-out pictures is."""
    closer: float
    """The share of samples closer than the threshold."""
    low: float
    high: float
    """Its 95 % interval."""
    expected: float
    """The value of `closer` for samples that are no closer than held-out pictures."""
    nearer: float
    """How often a sample is nearer to training than a held-out picture is, over all pairs: 0.5 if
    they do not differ. It detects that all are vague copies, `closer` that a few are exact ones."""
    count: int
    """The number of samples."""


def nearest_neighbours(
    queries: Shaped[Tensor, "Q D"], training: Shaped[Tensor, "N D"]
) -> tuple[Float[Tensor, " Q"], Int[Tensor, " Q"]]:
    """Euclidean distance to the nearest training picture, and which one it is.

    Rows of bytes are converted to floats one block at a time: training sets are large.
    """
    if queries.shape[1] != training.shape[1] or not len(training):
        shapes = tuple(queries.shape), tuple(training.shape)
        raise ValueError(f"queries (Q, D) need training pictures (N, D) of equal D, not {shapes}")
    indices = []
    for part in queries.split(QUERIES):
        part = part.float()
        closest = part.new_full((len(part),), torch.inf)
        index = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        for start in range(0, len(training), BANK):
            nearest, at = torch.cdist(part, training[start : start + BANK].float()).min(1)
            index = torch.where(nearest < closest, at + start, index)
            closest = closest.minimum(nearest)
        indices.append(index)
    index = torch.cat(indices)
    # cdist multiplies matrices, which rounds: compute the distance to the nearest one directly
    exact = torch.cat(
        [
            (part.float() - training[at].float()).norm(dim=1)
            for part, at in zip(queries.split(QUERIES), index.split(QUERIES), strict=True)
        ]
    )
    return exact, index


def memorisation(
    samples: Float[Tensor, " Q"], held_out: Float[Tensor, " M"], expected: float = 0.01
) -> Memorisation:
    """Compare distances to the nearest training picture, of samples and of held-out pictures."""
    samples, held_out = samples.double().cpu(), held_out.double().cpu()
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    threshold = float(held_out.quantile(expected))
    hits = int((samples < threshold).sum())
    ordered = held_out.sort().values  # ties count half, as in the Mann-Whitney statistic
    farther = len(ordered) - torch.searchsorted(ordered, samples, right=True)
    not_nearer = torch.searchsorted(ordered, samples, right=False)
    nearer = (len(ordered) + farther - not_nearer).double().mean() / (2 * len(ordered))
    return Memorisation(
        samples=tuple(samples.quantile(levels).tolist()),
        held_out=tuple(held_out.quantile(levels).tolist()),
        threshold=threshold,
        closer=hits / len(samples),
        low=wilson_interval(hits, len(samples))[0],
        high=wilson_interval(hits, len(samples))[1],
        expected=expected,
        nearer=float(nearer),
        count=len(samples),
    )

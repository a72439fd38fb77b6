"""Precision, recall, density and coverage, from nearest neighbours among features.

Precision and recall: Kynkaanniemi et al. (arXiv:1904.06991). Density and coverage: Naeem et al.
(arXiv:2002.09797), which are robust to outliers.

Dimensions: N real pictures, M samples, D features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1024  # rows of a distance matrix at a time


@dataclass(frozen=True)
class Prdc:
    """Four shares; all depend on the numbers of pictures, so compare only at equal numbers."""

    precision: float
    """Samples in the neighbourhood of some real picture: do they look real?"""
    recall: float
    """Real pictures in the neighbourhood of some sample: is every kind covered?"""
    density: float
    """Mean number of real neighbourhoods that a sample is in, over k: 1 for equal distributions,
    more if samples crowd the densest regions."""
    coverage: float
    """Real pictures with a sample in their neighbourhood: 1 - 2^-k for equal distributions."""
    neighbours: int
    """k: a picture's neighbourhood reaches to its k-th nearest neighbour in its own set."""


def prdc(real: Float[Tensor, "N D"], samples: Float[Tensor, "M D"], neighbours: int = 5) -> Prdc:
    """Precision, recall, density and coverage of samples against real pictures."""
    if min(len(real), len(samples)) <= neighbours:
        raise ValueError(
            f"with {neighbours} neighbours each set needs at least {neighbours + 1} pictures, "
            f"not {len(real)} real and {len(samples)} samples"
        )
    real_radius = _radii(real, neighbours)
    sample_radius = _radii(samples, neighbours)
    recalled = covered = inside = 0
    hit = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    for part, radius in zip(real.split(CHUNK), real_radius.split(CHUNK), strict=True):
        distance = torch.cdist(part, samples)  # (chunk, M)
        within = distance <= radius[:, None]
        hit |= within.any(0)
        inside += int(within.sum())
        covered += int(within.any(1).sum())
        recalled += int((distance <= sample_radius).any(1).sum())
    return Prdc(
        precision=int(hit.sum()) / len(samples),
        recall=recalled / len(real),
        density=inside / (neighbours * len(samples)),
        coverage=covered / len(real),
        neighbours=neighbours,
    )


def _radii(x: Float[Tensor, "N D"], neighbours: int) -> Float[Tensor, " N"]:
    """Distance of each row to its k-th nearest other: the (k + 1)-th smallest, itself counted."""
    distances = (torch.cdist(part, x) for part in x.split(CHUNK))
    return torch.cat([d.topk(neighbours + 1, largest=False).values[:, -1] for d in distances])

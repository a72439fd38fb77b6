"""Diversity: do the samples of a class differ as much as its real pictures?

Dimensions: N and M pictures, D features.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def mean_pairwise_distance(features: Float[Tensor, "N D"]) -> float:
    """The mean Euclidean distance over all pairs of different rows."""
    if len(features) < 2:
        raise ValueError(f"at least two pictures are needed, not {len(features)}")
    return float(torch.nn.functional.pdist(features.double()).mean())


def diversity(
    samples: Float[Tensor, "N D"],
    sample_labels: Int[Tensor, " N"],
    real: Float[Tensor, "M D"],
    real_labels: Int[Tensor, " M"],
    classes: int,
    limit: int = 500,
) -> tuple[float | None, ...]:
    """For each class, the mean distance of two samples over that of two real pictures.

    1 is as varied as real pictures; near 0, the class has collapsed to few pictures; well above 1,
    some samples are not of the class. Only the first `limit` pictures of each class are used. None
    if a class has fewer than two pictures on either side, or identical real ones.
    """
    ratios: list[float | None] = []
    for label in range(classes):
        ours = samples[sample_labels == label][:limit]
        theirs = real[real_labels == label][:limit]
        enough = min(len(ours), len(theirs)) >= 2
        scale = mean_pairwise_distance(theirs) if enough else 0.0
        ratios.append(mean_pairwise_distance(ours) / scale if scale > 0 else None)
    return tuple(ratios)

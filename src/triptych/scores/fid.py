"""FID and KID: Frechet and kernel distance between the features of two sets of pictures.

Dimensions: N and M pictures, D features.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.scores.accuracy import NORMAL_95

CHUNK = 256  # rows of a kernel matrix at a time, which fit the processor's cache


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """FID (arXiv:1706.08500, equation 6): the distance between Gaussians fitted to two sets.

        |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))

    At least 0, in squared units of the features. It is biased upwards by about 1 / N, so compare
    only values of the same N. Covariances may be singular: the trace of the root is the sum of the
    singular values of cov_a^(1/2) cov_b^(1/2), both roots of symmetric matrices.
    """
    _check(a, b, least=2)
    mean_a, root_a, trace_a = _gaussian(a.double())
    mean_b, root_b, trace_b = _gaussian(b.double())
    overlap = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (mean_a - mean_b).square().sum() + trace_a + trace_b - 2 * overlap
    return max(0.0, float(distance))


def frechet_estimate(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Estimate:
    """FID with its sampling error.

    Delete-a-group jackknife: a twentieth of each set is left out in turn. Rows must be in random
    order. The interval is for the value at this N and does not remove its upward bias; near a
    distance of zero it is too wide rather than too narrow.
    """
    groups = min(20, len(a) // 2, len(b) // 2)
    value = frechet_distance(a, b)
    if groups < 2:
        raise ValueError(f"an interval needs at least 4 rows per set, not {len(a)} and {len(b)}")
    parts_a, parts_b = a.tensor_split(groups), b.tensor_split(groups)
    without = [
        frechet_distance(
            torch.cat(parts_a[:i] + parts_a[i + 1 :]), torch.cat(parts_b[:i] + parts_b[i + 1 :])
        )
        for i in range(groups)
    ]
    variance = (groups - 1) * torch.tensor(without, dtype=torch.float64).var(correction=0)
    half = NORMAL_95 * math.sqrt(float(variance))
    return Estimate(value, max(0.0, value - half), value + half)


def kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Estimate:
    """KID (arXiv:1801.01401): the squared maximum mean discrepancy, kernel (x.y / D + 1)^3.

    Unbiased for any N and M, and therefore often below zero for two sets of one distribution. All
    pairs are used instead of the usual random subsets: the expectation is the same, the variance is
    smallest, and no seed is involved. The interval uses the larger of two standard errors: the
    jackknife's over pictures, and the one for equal distributions, where the jackknife fails
    because every first-order term vanishes (Gretton et al. 2012, theorem 12).
    """
    _check(a, b, least=3)
    n, m = len(a), len(b)
    own_a, own_b = _kernel_sums(a, a)[0] - _self_kernel(a), _kernel_sums(b, b)[0] - _self_kernel(b)
    cross_a, cross_b, squares = _kernel_sums(a, b)
    within_a, within_b, across = own_a.sum(), own_b.sum(), cross_a.sum()
    term_a, term_b = within_a / (n * (n - 1)), within_b / (m * (m - 1))
    value = float(term_a + term_b - 2 * across / (n * m))
    # the statistic with one picture of a, then one of b, left out
    without_a = (within_a - 2 * own_a) / ((n - 1) * (n - 2)) + term_b
    without_a -= 2 * (across - cross_a) / ((n - 1) * m)
    without_b = (within_b - 2 * own_b) / ((m - 1) * (m - 2)) + term_a
    without_b -= 2 * (across - cross_b) / (n * (m - 1))
    jackknife = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    # E k^2 of the kernel centred on both sides: the sum of its squared eigenvalues
    row_means, column_means, mean = cross_a / m, cross_b / n, across / (n * m)
    centred = squares / (n * m) - row_means.square().mean() - column_means.square().mean() + mean**2
    equal = 2 * (1 / n + 1 / m) ** 2 * centred
    half = NORMAL_95 * math.sqrt(max(0.0, float(jackknife), float(equal)))
    return Estimate(value, value - half, value + half)


def _check(a: Tensor, b: Tensor, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features are (N, D) and (M, D), not {tuple(a.shape)}, {tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"at least {least} rows per set are needed, not {len(a)} and {len(b)}")


def _gaussian(x: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, symmetric root of the covariance, and its trace."""
    mean = x.mean(0)
    centred = x - mean
    covariance = centred.T @ centred / (len(x) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, (vectors * values.clamp(min=0).sqrt()) @ vectors.T, covariance.trace()


def _self_kernel(x: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    return (x.square().sum(1).double() / x.shape[1] + 1) ** 3


def _kernel_sums(
    a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " M"], Float[Tensor, ""]]:
    """The kernel of all pairs summed along each axis, and its squares, in float64."""
    rows, columns = [], b.new_zeros(len(b), dtype=torch.float64)
    squares = columns.new_zeros(())
    for part in a.split(CHUNK):
        kernel = (part @ b.T).div_(a.shape[1]).add_(1).pow_(3)
        rows.append(kernel.sum(1, dtype=torch.float64))
        columns += kernel.sum(0, dtype=torch.float64)
        squares += kernel.square_().sum(dtype=torch.float64)
    return torch.cat(rows), columns, squares

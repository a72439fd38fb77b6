"""Frechet and kernel distance: closed forms, torchmetrics, unbiasedness, honest intervals."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from triptych.scores.fid import frechet_distance, frechet_estimate, kernel_distance


def gaussian(mean, covariance, count=1000, seed=0):
    """Rows whose sample mean and covariance are exactly these."""
    dim = len(mean)
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    root = torch.linalg.cholesky(torch.as_tensor(covariance, dtype=torch.float64))
    return torch.as_tensor(mean, dtype=torch.float64) + whitened @ root.T


def test_frechet_distance_of_a_set_to_itself_is_zero():
    x = torch.randn(300, 20)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shift_is_its_squared_length():
    covariance = [[2.0, 0.5], [0.5, 1.0]]
    a, b = gaussian([0, 0], covariance), gaussian([3, -4], covariance, seed=1)
    assert frechet_distance(a, b) == pytest.approx(25, rel=1e-9)


def test_frechet_distance_of_diagonal_covariances():
    a = gaussian([0, 0, 1], np.diag([1.0, 4.0, 9.0]))
    b = gaussian([0, 2, 1], np.diag([4.0, 4.0, 0.25]), count=700, seed=1)
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 0 + 2.5**2, rel=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """In two dimensions tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))."""
    one, two = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    product = one @ two
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    wanted = np.trace(one) + np.trace(two) - 2 * root
    found = frechet_distance(gaussian([0, 0], one), gaussian([0, 0], two, seed=1))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_of_fewer_rows_than_columns():
    """Two lines at a right angle: the roots do not overlap, so the traces add up."""
    along = torch.linspace(-1, 1, 9, dtype=torch.float64)
    a, b = torch.zeros(9, 50).double(), torch.zeros(9, 50).double()
    a[:, 3], b[:, 7] = along, 2 * along
    assert frechet_distance(a, b) == pytest.approx(5 * along.var().item(), rel=1e-9)


class FirstFeatures(nn.Module):
    """What torchmetrics takes for an Inception network: pictures to features."""

    num_features = 12

    def forward(self, image):
        return image.flatten(1)[:, :12].double() / 64


def pictures(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shift, 200 + shift, (400, 3, 4, 4), generator=generator, dtype=torch.uint8)


def test_frechet_distance_equals_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=FirstFeatures(), input_img_size=(3, 4, 4))
    theirs.set_dtype(torch.float64)
    real, fake = pictures(0, 0), pictures(1, 40)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    features = FirstFeatures()
    ours = frechet_distance(features(real), features(fake))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_kernel_distance_equals_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    theirs = KernelInceptionDistance(feature=FirstFeatures(), subsets=1, subset_size=400)
    theirs.set_dtype(torch.float64)
    real, fake = pictures(0, 0), pictures(1, 40)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    features = FirstFeatures()
    ours = kernel_distance(features(real), features(fake))
    assert ours.value == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


def test_kernel_distance_closed_form():
    """With D = 1 the kernel (xy + 1)^3 compares the first three moments:
    MMD^2 = sum over p of binom(3, p) (E x^p - E y^p)^2; for N(0, 1) and N(0.5, 1) the moments are
    0, 1, 0 and 0.5, 1.25, 1.625."""
    wanted = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7000, 1, generator=generator)
    b = torch.randn(5000, 1, generator=generator) + 0.5
    found = kernel_distance(a, b)
    assert found.low < wanted < found.high
    assert found.value == pytest.approx(wanted, rel=0.15)


def halves(seed, count=60, dim=4):
    x = torch.randn(2 * count, dim, generator=torch.Generator().manual_seed(seed))
    return x[:count], x[count:]


def test_kernel_distance_is_unbiased():
    """Over many halves of one distribution the mean is zero within three standard errors, while
    the biased form, which counts a picture's kernel with itself, would be far from it."""
    values = torch.tensor([kernel_distance(*halves(seed)).value for seed in range(600)])
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item()) < 3 * error
    a, _ = halves(0)
    bias = ((a.square().sum(1) / 4 + 1) ** 3).mean().item() / 60
    assert bias > 10 * error  # so the test would see it


def clusters(seed, count=90):
    """Two sets from the same three far clusters: few directions matter, so values are skewed."""
    generator = torch.Generator().manual_seed(seed)
    place = 3 * torch.eye(3)[torch.randint(3, (2 * count,), generator=generator)]
    x = place + 0.1 * torch.randn(2 * count, 3, generator=generator)
    return x[:count], x[count:]


@pytest.mark.parametrize("sets", [halves, clusters])
def test_the_kernel_interval_covers_the_truth(sets):
    found = [kernel_distance(*sets(seed)) for seed in range(300)]
    covered = sum(estimate.low <= 0 <= estimate.high for estimate in found)
    assert covered >= 0.92 * 300
    if sets is clusters:  # it is not wide for nothing: it is about the spread there is
        spread = 1.96 * torch.tensor([estimate.value for estimate in found]).std().item()
        widths = torch.tensor([(estimate.high - estimate.low) / 2 for estimate in found])
        assert widths.median().item() < 1.6 * spread


@pytest.mark.parametrize("measure", [frechet_estimate, kernel_distance])
def test_the_interval_is_as_wide_as_other_samples_spread(measure):
    values, halfwidths = [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(200, 3, generator=generator)
        b = 1.3 * torch.randn(200, 3, generator=generator) + 1
        found = measure(a, b)
        values.append(found.value)
        halfwidths.append((found.high - found.low) / 2)
    spread = 1.96 * torch.tensor(values).std().item()
    assert 0.75 < torch.tensor(halfwidths).mean().item() / spread < 1.35


def test_what_is_too_small_or_unequal_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least 3 rows"):
        kernel_distance(torch.zeros(2, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(5, 3\), \(5, 4\)"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least 4 rows"):
        frechet_estimate(torch.zeros(3, 3), torch.zeros(5, 3))


@pytest.mark.parametrize("far", [False, True])
def test_the_kernel_interval_is_the_larger_of_two_written_from_their_definitions(far):
    """Every picture left out in turn; and theorem 12 of Gretton et al. (2012), whose variance is
    2 (1 / n + 1 / m)^2 times the mean square of the centred kernel. Equal sets need the second.
    """
    draws = np.random.default_rng(0)
    a, b = (3 * np.eye(3)[np.arange(n) % 3] + 0.1 * draws.normal(size=(n, 3)) for n in (9, 15))
    if far:
        a, b = draws.normal(size=(9, 3)), draws.normal(1.5, 1, size=(15, 3))

    def kernel(x, y):
        return (x @ y.T / 3 + 1) ** 3

    def distance(x, y):
        own = [kernel(z, z) for z in (x, y)]
        within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own]
        return sum(within) - 2 * kernel(x, y).mean()

    jackknife = 0.0
    for whole, leave in ((a, lambda x: distance(x, b)), (b, lambda y: distance(a, y))):
        without = np.array([leave(np.delete(whole, i, 0)) for i in range(len(whole))])
        jackknife += (len(whole) - 1) * without.var()
    cross = kernel(a, b)
    centred = cross - cross.mean(0) - cross.mean(1, keepdims=True) + cross.mean()
    equal = 2 * (1 / 9 + 1 / 15) ** 2 * (centred**2).mean()
    assert (equal < jackknife) == far
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    half = 1.959964 * math.sqrt(max(jackknife, equal))
    assert found.value == pytest.approx(distance(a, b))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))


@pytest.mark.parametrize(("count", "groups"), [(4, 2), (9, 4), (60, 20)])
def test_the_frechet_interval_leaves_out_a_group_in_turn(count, groups):
    """The jackknife's variance, (g - 1) / g times the sum of squares (Efron and Stein 1981)."""
    draws = torch.Generator().manual_seed(0)
    a = torch.randn(count, 2, generator=draws, dtype=torch.float64)
    b = torch.randn(count + 5, 2, generator=draws, dtype=torch.float64) + 4
    without = []
    for i in range(groups):
        keep = [
            np.setdiff1d(np.arange(len(x)), np.array_split(np.arange(len(x)), groups)[i])
            for x in (a, b)
        ]
        without.append(frechet_distance(a[keep[0]], b[keep[1]]))
    squares = sum((x - sum(without) / groups) ** 2 for x in without)
    half = 1.959964 * math.sqrt((groups - 1) / groups * squares)
    found = frechet_estimate(a, b)
    assert found.value == pytest.approx(frechet_distance(a, b))
    assert found.high == pytest.approx(found.value + half)
    assert found.low == pytest.approx(max(0, found.value - half))

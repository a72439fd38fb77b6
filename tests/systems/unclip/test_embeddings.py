"""Arithmetic of embeddings in closed form."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from triptych.systems.unclip.embeddings import principal_components, slerp, text_difference


def test_a_spherical_interpolation_turns_by_shares_of_the_angle():
    a, b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 4.0]])
    for share in (0.0, 0.25, 0.5, 1.0):
        angle, length = share * math.pi / 2, 2 + 2 * share
        expected = torch.tensor([[length * math.cos(angle), 0.0, length * math.sin(angle)]])
        torch.testing.assert_close(slerp(a, b, share), expected)
    torch.testing.assert_close(slerp(a, a, 0.3), a)  # no angle between them


def test_a_text_difference_turns_towards_the_change_and_keeps_the_length():
    image = 3 * torch.tensor([[1.0, 0.0, 0.0]])
    before, after = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    turned = text_difference(image, before, after, 0.5)
    torch.testing.assert_close(turned, 3 * torch.tensor([[0.5, 0.0, 0.5]]).sqrt())
    torch.testing.assert_close(text_difference(image, before, after, 0.0), image)


def test_components_are_those_of_scikit_learn():
    torch.manual_seed(0)
    embeddings = torch.randn(200, 12) * torch.linspace(0.1, 2, 12) + 1
    found, peer = principal_components(embeddings, 0.9), PCA(0.9).fit(embeddings.numpy())
    assert len(found.directions) == peer.n_components_ < 12
    np.testing.assert_allclose(found.variances, peer.explained_variance_, rtol=1e-4)
    cosines = (found.directions.numpy() * peer.components_).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-4)
    kept = peer.inverse_transform(peer.transform(embeddings.numpy()))
    np.testing.assert_allclose(found.project(embeddings), kept, atol=1e-4)
    few = found.project(embeddings, 2)
    assert (embeddings - few).norm() > (embeddings - found.project(embeddings)).norm()
    whole = principal_components(embeddings)
    torch.testing.assert_close(whole.project(embeddings), embeddings, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "share"), [(1, 0.9), (5, 0.0), (5, 1.1), (5, float("nan"))])
def test_components_need_embeddings_and_a_share(rows, share):
    with pytest.raises(ValueError, match="components are of at least two"):
        principal_components(torch.randn(rows, 4), share)

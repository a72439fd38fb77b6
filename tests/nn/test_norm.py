"""Normalisation against its formula, and what it does with half precision."""

import pytest
import torch

from triptych.nn.norm import GroupNorm, RmsNorm


def test_group_norm_is_its_formula():
    torch.manual_seed(0)
    norm = GroupNorm(2, 6).double()
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64) * 3 + 1
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    groups = x.reshape(3, 2, -1)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, correction=0)
    plain = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    expected = plain * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_statistics_are_float32_whatever_the_input(autocast, weights):
    """The mean of 65,536 numbers near 100: in bfloat16 a running sum would stop growing."""
    torch.manual_seed(0)
    x = (100 + 4 * torch.randn(1, 4, 128, 128)).bfloat16()
    norm = GroupNorm(1, 4).to(weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        normal = norm(x)
    assert normal.dtype == torch.bfloat16
    exact = x.double()
    exact = (exact - exact.mean()) / exact.std(correction=0)
    assert (normal.double() - exact).abs().max() < 2**-8 * exact.abs().max()


def test_a_picture_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    norm, x = GroupNorm(2, 4), torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(norm(x)[1:2], norm(x[1:2]))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("settings", [{}, {"offset": 1.0}, {"offset": 0.0}])
def test_rms_norm_is_its_formula(settings, fold):
    """Gemma's, which adds 1 to its weight, unless told otherwise."""
    torch.manual_seed(0)
    norm, x = RmsNorm(6, **settings).double(), torch.randn(3, 4, 6, dtype=torch.float64)
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), plain)  # a new one scales nothing
    with torch.no_grad():
        norm.weight.normal_()
    scale = norm.weight.detach() + settings.get("offset", 1.0)
    if fold:
        norm.fold()
    torch.testing.assert_close(norm(x), plain * scale)

"""Residual blocks, halving, doubling."""

import pytest
import torch
from torch.nn import functional as F

from triptych.nn.convolution import Downsample, PixelAttention, ResBlock, Upsample


def block(**settings):
    torch.manual_seed(0)
    return ResBlock(8, 8, groups=4, **settings)


@pytest.mark.parametrize("out", [8, 12])
def test_a_new_block_is_its_shortcut(out):
    torch.manual_seed(0)
    new, x = ResBlock(8, out, features=3, groups=4), torch.randn(2, 8, 5, 5)
    expected = x if out == 8 else new.shortcut(x)
    assert torch.equal(new(x, torch.randn(2, 3)), expected)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_features_enter_where_they_should(conditioning):
    """Against the formula, and without leaving a trace in what was given."""
    layer = block(features=3, conditioning=conditioning)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    x, features = torch.randn(2, 8, 6, 5), torch.randn(2, 3)
    before = x.clone()
    shift = layer.feature_proj(features)[:, :, None, None]
    h = layer.conv1(F.silu(F.group_norm(x, 4, layer.norm1.weight, layer.norm1.bias)))
    if conditioning == "add":
        h = F.group_norm(h + shift, 4, layer.norm2.weight, layer.norm2.bias)
    else:
        scale, shift = shift.chunk(2, dim=1)
        h = F.group_norm(h, 4, layer.norm2.weight, layer.norm2.bias) * (1 + scale) + shift
    torch.testing.assert_close(layer(x, features), x + layer.conv2(F.silu(h)))
    assert torch.equal(x, before)


def test_a_block_without_features():
    layer = block()
    assert layer.feature_proj is None
    assert layer(torch.randn(2, 8, 4, 4)).shape == (2, 8, 4, 4)


def test_dropout_only_while_training():
    layer = block(dropout=0.5)
    torch.nn.init.normal_(layer.conv2.weight)
    x = torch.randn(2, 8, 4, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_tokens_that_are_masked_are_as_if_they_were_not_there():
    torch.manual_seed(0)
    layer, x = (
        PixelAttention(8, heads=2, groups=4, context=6).requires_grad_(False),
        torch.randn(2, 8, 3, 5),
    )
    layer.attention.out_proj.weight.normal_()
    context, lengths = torch.randn(2, 4, 6), (3, 1)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    found = layer(x, context, mask)
    for row, length in enumerate(lengths):
        alone = layer(x[row : row + 1], context[row : row + 1, :length])
        torch.testing.assert_close(found[row : row + 1], alone)


def test_attention_of_pixels_is_torch_s_over_the_normalised_ones():
    torch.manual_seed(0)
    layer, x = PixelAttention(8, heads=2, groups=4), torch.randn(2, 8, 3, 5)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    own = layer.attention
    peer = torch.nn.MultiheadAttention(8, 2, batch_first=True).requires_grad_(False)
    for name, parts in (("in_proj_weight", "weight"), ("in_proj_bias", "bias")):
        rows = [getattr(p, parts) for p in (own.q_proj, own.k_proj, own.v_proj)]
        getattr(peer, name).copy_(torch.cat(rows))
    peer.out_proj.load_state_dict(own.out_proj.state_dict())
    pixels = F.group_norm(x, 4, layer.norm.weight, layer.norm.bias).flatten(2).transpose(1, 2)
    change = peer(pixels, pixels, pixels)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), x + change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_half_the_side_is_rounded_up(side):
    assert Downsample(2)(torch.randn(1, 2, side, side)).shape == (
        1,
        2,
        -(-side // 2),
        -(-side // 2),
    )


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((4, 5), (8, 10)),
        ((4, 5), (7, 10)),
        ((4, 5), (8, 9)),
        ((2, 3), (3, 5)),
        ((1, 1), (1, 1)),
        ((1, 1), (2, 2)),
    ],
)
def test_doubling_repeats_pixels_and_convolves(given, size):
    """Whatever way it takes: values, and the gradients of input, filter and bias."""
    torch.manual_seed(0)
    layer = Upsample(3).double()
    x = torch.randn(2, 3, *given, dtype=torch.float64, requires_grad=True)
    rows = [i * given[0] // size[0] for i in range(size[0])]
    columns = [i * given[1] // size[1] for i in range(size[1])]
    expected = F.conv2d(x[:, :, rows][:, :, :, columns], layer.conv.weight, layer.conv.bias, 1, 1)
    output = layer(x, size)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    wanted = (x, layer.conv.weight, layer.conv.bias)
    for ours, theirs in zip(
        torch.autograd.grad((output * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)

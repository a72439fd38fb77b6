"""Circular padding against pixels repeated by hand."""

import pytest
import torch
from torch import nn

from triptych.nn.circular import circular


def test_convolutions_see_the_other_side_within_the_context_only():
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    layers[1].padding_mode = "reflect"
    layers.requires_grad_(False)
    x = torch.randn(1, 1, 6, 5)
    plain = layers(x)
    wrapped = torch.cat([x[..., -2:], x, x[..., :2]], 3)
    wrapped = torch.cat([wrapped[:, :, -2:], wrapped, wrapped[:, :, :2]], 2)
    with circular(layers):
        inside = layers(x)
    bare = nn.Sequential(*(nn.Conv2d(a, b, 3) for a, b in ((1, 2), (2, 1))))
    bare.load_state_dict(layers.state_dict())
    torch.testing.assert_close(inside, bare(wrapped))
    assert [conv.padding_mode for conv in layers] == ["zeros", "reflect"]
    assert torch.equal(layers(x), plain)
    with circular(layers, enabled=False):
        assert torch.equal(layers(x), plain)


def test_an_error_leaves_no_layer_circular():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(KeyError), circular(layer):
        raise KeyError
    assert layer.padding_mode == "zeros"

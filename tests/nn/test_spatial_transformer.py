"""Transformer blocks over pixels: each part against its formula."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triptych.nn.spatial_transformer import ContextBlock, GatedMlp, SpatialTransformer


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3)
    return module


@torch.no_grad()
def test_the_gate_is_a_gelu():
    """Equation 6 of arXiv:2002.05202: GELU(x W) times x V, then W2."""
    mlp = randomised(GatedMlp(4, 10))
    x = torch.randn(2, 3, 4)
    gate = x @ mlp.gate.weight.T + mlp.gate.bias
    gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    expected = (gelu * (x @ mlp.up.weight.T + mlp.up.bias)) @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x), expected)


def attention(layer, x, context, heads):
    q, k, v = (
        x @ layer.q_proj.weight.T,
        context @ layer.k_proj.weight.T,
        context @ layer.v_proj.weight.T,
    )
    parts = []
    for q_, k_, v_ in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = q_ @ k_.transpose(1, 2) / q_.shape[-1] ** 0.5
        parts.append(scores.softmax(-1) @ v_)
    return torch.cat(parts, -1) @ layer.out_proj.weight.T + layer.out_proj.bias


@torch.no_grad()
@pytest.mark.parametrize("only_context", [False, True])
def test_a_block_is_two_attentions_and_an_mlp(only_context):
    block = randomised(ContextBlock(6, 3, 5, only_context=only_context))
    assert block.mlp.down.weight.shape == (6, 4 * 6)  # the width of published ones
    x, context = torch.randn(2, 4, 6), torch.randn(2, 7, 5)

    def normed(norm, y):
        return F.layer_norm(y, (6,), norm.weight, norm.bias)

    h = normed(block.attn_norm, x)
    y = x + attention(block.attn, h, context if only_context else h, 3)
    y = y + attention(block.context_attn, normed(block.context_norm, y), context, 3)
    y = y + block.mlp(normed(block.mlp_norm, y))
    torch.testing.assert_close(block(x, context), y)


def test_a_new_one_passes_its_picture_through():
    module = SpatialTransformer(8, 2, 2, 5, groups=4)
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(module(x, torch.randn(2, 6, 5)), x)


@pytest.mark.parametrize("only_context", [False, True])
def test_all_blocks_look_at_the_same(only_context):
    module = SpatialTransformer(8, 2, 2, 5, groups=4, only_context=only_context)
    assert [block.attn.k_proj.in_features for block in module.blocks] == [
        5 if only_context else 8
    ] * 2


@torch.no_grad()
def test_the_ways_in_and_out_are_1_x_1_convolutions():
    module = randomised(SpatialTransformer(8, 2, 1, 5, groups=4))
    x, context = torch.randn(2, 8, 3, 4), torch.randn(2, 6, 5)
    normed = nn.functional.group_norm(x, 4, module.norm.weight, module.norm.bias, 1e-6)
    h = F.conv2d(normed, module.proj_in.weight[:, :, None, None], module.proj_in.bias)
    h = module.blocks[0](h.flatten(2).transpose(1, 2), context).transpose(1, 2).view(2, 8, 3, 4)
    h = F.conv2d(h, module.proj_out.weight[:, :, None, None], module.proj_out.bias)
    torch.testing.assert_close(module(x, context), x + h)


@torch.no_grad()
def test_pixels_have_no_order_and_tokens_neither():
    """Nothing in it knows where a pixel stands: permuted pixels give permuted answers."""
    module = randomised(SpatialTransformer(8, 2, 2, 5, groups=4))
    x, context = torch.randn(1, 8, 1, 12), torch.randn(1, 6, 5)
    order = torch.randperm(12)
    torch.testing.assert_close(
        module(x[..., order], context[:, torch.randperm(6)]), module(x, context)[..., order]
    )

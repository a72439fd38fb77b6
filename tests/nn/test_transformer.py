"""Transformer blocks, attention pooling, patches and low-rank updates against plain formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triptych.nn import lora
from triptych.nn.bag_of_words import BagOfWords
from triptych.nn.patches import check_stem, keep_patches, patch_embedding
from triptych.nn.position import resize_grid
from triptych.nn.transformer import ACTIVATIONS, AttentionPool, Block, Transformer


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def test_scaled_layers_begin_near_the_identity():
    """CaiT, arXiv:2103.17239."""
    block = Block(16, 4, 32, layer_scale=True)
    for scale in (block.attn_scale, block.mlp_scale):
        assert (scale == 1e-4).all()


@pytest.mark.parametrize("layer_scale", [False, True])
def test_one_place_is_what_all_places_give(layer_scale):
    stack = randomised(Transformer(16, 3, 4, 32, layer_scale=layer_scale))
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    places = torch.tensor([0, 6, 3])
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    for mask in (None, causal):
        whole = stack(x, mask if mask is None else mask[None, None])
        there = stack.at(x, places, mask)
        torch.testing.assert_close(there, whole[torch.arange(3), places])


def test_alone_is_attention_that_sees_its_own_place():
    stack = randomised(Transformer(16, 2, 4, 32))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    first, last = stack.blocks
    own = torch.eye(5, dtype=torch.bool)[None, None]
    torch.testing.assert_close(stack.alone(x), last(first(x), own))


def test_a_pool_of_one_place_is_that_place_alone():
    pool = randomised(AttentionPool(16, 4, 32))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    alone = pool.alone(x)
    for place in range(5):
        mask = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
        mask[..., place] = True
        torch.testing.assert_close(pool(x, mask.expand(2, 1, 1, 5)), alone[:, place])


def test_a_block_adds_what_attention_and_mlp_say():
    block = randomised(Block(8, 2, 16, activation="quick_gelu"))
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    h = F.layer_norm(x, (8,), block.attn_norm.weight, block.attn_norm.bias, 1e-5)
    q, k, v = (getattr(block.attn, f"{n}_proj")(h).view(1, 4, 2, 4).transpose(1, 2) for n in "qkv")
    weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    y = x + block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
    h = block.mlp.up(F.layer_norm(y, (8,), block.mlp_norm.weight, block.mlp_norm.bias, 1e-5))
    y = y + block.mlp.down(h / (1 + torch.exp(-1.702 * h)))
    torch.testing.assert_close(block(x), y)


def test_activations_are_three_different_functions():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    exact = x * (1 + torch.erf(x / 2**0.5)) / 2
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), exact)
    differing = {name: (f(x) - exact).abs().max().item() for name, f in ACTIVATIONS.items()}
    assert 0.01 < differing["quick_gelu"] < 0.03
    assert 1e-5 < differing["gelu_tanh"] < 1e-3


def test_positions_of_a_grid_are_interpolated_and_rows_come_first():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    position = torch.stack([rows.flatten(), columns.flatten()], 1)
    assert torch.equal(resize_grid(position, (4, 4)), position)
    wide = resize_grid(position, (4, 8), mode="bilinear").reshape(4, 8, 2)
    torch.testing.assert_close(wide[:, 3, 0], torch.arange(4.0))  # rows are where they were
    torch.testing.assert_close(wide[1, 1:7, 1], torch.arange(0.25, 3.0, 0.5))


def test_patches_left_out_are_others_for_every_picture():
    x = torch.arange(20.0).view(1, 20, 1).expand(50, 20, 2)
    torch.manual_seed(0)
    kept = keep_patches(x, 0.25)
    assert kept.shape == (50, 5, 2)
    assert all(len(set(row[:, 0].tolist())) == 5 for row in kept)
    assert len({tuple(sorted(row[:, 0].tolist())) for row in kept}) > 40
    assert keep_patches(x, 0.01).shape[1] == 1


def test_a_stem_makes_as_many_patches_as_one_filter():
    x = torch.randn(2, 3, 32, 32)
    stem = patch_embedding(24, 8, (8, 12, 16), bias=True)
    assert stem(x).shape == patch_embedding(24, 8, (), bias=False)(x).shape == (2, 24, 4, 4)


def test_channels_of_a_stem_are_normalised_in_groups():
    """What one group sees louder changes nothing where groups have their own scale."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for group, same in ((4, True), (0, False)):
        stem = patch_embedding(24, 8, (8, 12, 16), bias=True, stem_group=group).double()
        before = stem(x)
        with torch.no_grad():
            stem[0].weight[:4] *= 100
            stem[0].bias[:4] *= 100
        assert torch.allclose(stem(x), before, atol=1e-3) == same
    with pytest.raises(ValueError, match="must divide each of"):
        check_stem(32, 8, (8, 12, 16), 3)


def test_a_bag_of_words_is_the_mean_of_its_words():
    bag = BagOfWords(10, 4, 6, unspoken=(0, 8, 9))
    tokens = torch.tensor([[8, 3, 5, 3, 9, 0], [8, 9, 0, 0, 0, 0]])
    mean = (2 * bag.token.weight[3] + bag.token.weight[5]) / 3
    given = bag(tokens)
    torch.testing.assert_close(given[0], bag.projection(mean))
    assert given[1].abs().max() == 0  # no word, no direction, and no division by zero
    torch.testing.assert_close(bag(tokens[:, [0, 3, 1, 2, 4, 5]])[0], given[0])  # order is lost


def test_low_rank_updates_begin_as_nothing_and_merge_into_the_weights():
    model = randomised(Transformer(16, 2, 4, 32)).float()
    x = torch.randn(2, 5, 16)
    before = model(x)
    assert lora.add(model, 3, alpha=6.0, names=("q_proj", "v_proj")) == 4
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(moving) == 8 and all(".lora_" in name for name in moving)
    assert set(lora.parameters(model)) == set(moving)
    for name, parameter in model.named_parameters():
        if name in moving:
            nn.init.normal_(parameter)
    layer = model.blocks[0].attn.q_proj
    update = 2 * layer.lora_up @ layer.lora_down  # alpha / rank
    merged = lora.merge(model)
    torch.testing.assert_close(
        merged.blocks[0].attn.q_proj.weight, layer.linear.weight + update, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(merged(x), model(x), atol=1e-3, rtol=1e-4)
    assert [n for n, _ in merged.named_parameters()] == [
        n for n, _ in Transformer(16, 2, 4, 32).named_parameters()
    ]


def test_low_rank_updates_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        lora.add(Transformer(16, 1, 4, 32), 2, names=("query",))
    with pytest.raises(ValueError, match="at least 1"):
        lora.add(Transformer(16, 1, 4, 32), 0)

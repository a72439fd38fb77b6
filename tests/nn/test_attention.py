"""Attention against the plain formula, in every form that it takes."""

import itertools
import math

import pytest
import torch

from triptych.nn import attention
from triptych.nn.attention import Attention, attend


def tensors(queries=5, keys=7, kv_heads=4, *, gradient=True):
    torch.manual_seed(0)
    shapes = [(2, 4, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=gradient) for s in shapes]


def formula(q, k, v, mask=None, scale=None, softcap=None):
    """Query by query."""
    rows = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for b, h, t in itertools.product(*map(range, q.shape[:3])):
        scores = (k[b, h // group] * q[b, h, t]).sum(-1) * (scale or 8**-0.5)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if mask is not None:
            row = mask.expand(2, 4, *mask.shape[2:])[b, h, t if mask.shape[2] > 1 else 0]
            scores = scores + (row if row.is_floating_point() else row.double().log())
        weights = scores.exp() / scores.exp().sum()
        rows[b, h, t] = (weights[:, None] * v[b, h // group]).sum(0)
    return rows


def masks():
    torch.manual_seed(1)
    causal = torch.ones(1, 1, 5, 7, dtype=torch.bool).tril(2)
    padding = torch.tensor([7, 4])[:, None, None, None] > torch.arange(7)
    return {
        "none": None,
        "causal": causal,
        "padding": padding,
        "bias": torch.randn(1, 4, 5, 7, dtype=torch.float64),
    }


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"softcap": 2.0}])
def test_attend_is_the_formula(plain, mask, kv_heads, settings, monkeypatch):
    """By the fused kernel and by plain products, values and gradients."""
    monkeypatch.setattr(attention, "_slow_backward", lambda q, k: plain)
    inputs = tensors(kv_heads=kv_heads)
    output = attend(*inputs, masks()[mask], **settings)
    expected = formula(*tensors(kv_heads=kv_heads, gradient=False), masks()[mask], **settings)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weights).sum(), inputs)
    repeated = tensors(kv_heads=kv_heads)
    reference = formula(*[x * 1 for x in repeated], masks()[mask], **settings)
    for ours, theirs in zip(
        gradients, torch.autograd.grad((reference * weights).sum(), repeated), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"softcap": 2.0}])
def test_one_query_as_in_decoding_is_the_formula(mask, kv_heads, settings):
    inputs, seen = tensors(1, kv_heads=kv_heads, gradient=False), masks()[mask]
    seen = seen if seen is None else seen[:, :, -1:]
    expected = formula(*inputs, seen, **settings)
    torch.testing.assert_close(attend(*inputs, seen, **settings), expected)


@pytest.mark.parametrize(("capability", "fewest"), [("AVX2", 1), ("AVX512", 14)])
def test_few_tokens_take_the_plain_path_only_for_training_on_a_cpu(capability, fewest, monkeypatch):
    """At seven keys, with as many queries as make the fused kernel slow on such a CPU."""
    monkeypatch.setattr(attention.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    calls = []
    fused = attention.F.scaled_dot_product_attention

    def counted(*arguments, **settings):
        calls.append(arguments)
        return fused(*arguments, **settings)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    attend(*tensors(queries=fewest))
    assert not calls
    attend(*tensors(queries=fewest, gradient=False))
    with torch.no_grad():
        attend(*tensors(queries=fewest))
    attend(*tensors(queries=attention.FEW + 1))
    assert len(calls) == 3
    attend(*tensors(queries=fewest - 1)) if fewest > 1 else None
    assert len(calls) == 3 + (fewest > 1)


def halves(queries, keys, width=40, peaked=4.0):
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 3, n, width).bfloat16() for n in (queries, keys, keys))
    return q * peaked, k, v


def decibels(output, exact):
    return 10 * math.log10(exact.square().mean() / (output.double() - exact).square().mean())


@pytest.mark.parametrize(("queries", "keys"), [(70, 100), (128, 64), (300, 77)])
@pytest.mark.parametrize("tile", [1, 5_000, 10_000, 2 << 20])
def test_products_in_tiles_round_small_scores_only(queries, keys, tile, monkeypatch):
    """Whether a tile is part of a head, a head, or several of them."""
    monkeypatch.setattr(attention.runtime, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(attention, "TILE", tile)
    q, k, v = halves(queries, keys)
    exact = attend(q.double(), k.double(), v.double())
    output = attend(q, k, v)
    assert output.dtype == torch.bfloat16
    rounded = ((q @ k.transpose(-1, -2)) * 40**-0.5).softmax(-1) @ v  # scores as they come
    assert decibels(rounded, exact) < 42 and decibels(output, exact) > 45
    doubled = attend(q, k, v, scale=2 * 40**-0.5)
    assert decibels(doubled, attend(2 * q.double(), k.double(), v.double())) > 45


def test_a_score_far_above_all_that_were_looked_at(monkeypatch):
    """Its weight overflows at first."""
    monkeypatch.setattr(attention.runtime, "multiplies_bfloat16", lambda: True)
    q, k, v = halves(100, 100)
    k[:, :, 1] = 60 * q[:, :, 7]  # of every four keys the first is looked at
    exact = attend(q.double(), k.double(), v.double())
    assert (q[:, :, 7] * k[:, :, 1]).sum(-1).min() * 40**-0.5 > 500
    assert decibels(attend(q, k, v), exact) > 45


def test_tiles_are_for_bfloat16_on_a_cpu_that_multiplies_it(monkeypatch):
    calls = []
    tiles = attention._in_tiles
    monkeypatch.setattr(attention, "_in_tiles", lambda *given: calls.append(given) or tiles(*given))
    q, k, v = halves(64, 64)
    for quick, expected in ((False, 0), (True, 1)):
        monkeypatch.setattr(attention.runtime, "multiplies_bfloat16", lambda quick=quick: quick)
        attend(q, k, v)
        assert len(calls) == expected
    attend(q.float(), k.float(), v.float())
    attend(q, k, v, torch.ones(1, 1, 64, 64, dtype=torch.bool))  # masked
    attend(q, k[:, :1], v[:, :1])  # grouped
    attend(q, k, v, softcap=20.0)
    attend(q.clone().requires_grad_(), k, v)
    attend(q[:, :, :63], k, v)  # few
    assert len(calls) == 1
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    attend(q, k, v)
    assert len(calls) == 1


def test_few_halves_learn_by_plain_products(monkeypatch):
    """Where bfloat16 is multiplied: the fused kernel's backward pass is slow there."""
    few, many = halves(200, 150), halves(201, 150)
    for quick in (False, True):
        monkeypatch.setattr(attention.runtime, "fast_bfloat16", lambda quick=quick: quick)
        monkeypatch.setattr(attention.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        assert attention._slow_backward(*few[:2]) == quick
        assert not attention._slow_backward(*many[:2])


def test_half_precision_sums_in_float32():
    q, k, v = (x.detach().to(torch.bfloat16).requires_grad_() for x in tensors(64, 64))
    exact = attend(q.double(), k.double(), v.double())
    output = attend(q, k, v)
    assert output.dtype == torch.bfloat16
    assert (output - exact).abs().max() < 0.02


def test_attention_is_the_plain_layer():
    torch.manual_seed(0)
    layer, plain = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    names = ("q_proj", "k_proj", "v_proj")
    with torch.no_grad():
        for name, weight, bias in zip(
            names, plain.in_proj_weight.chunk(3), plain.in_proj_bias.normal_().chunk(3), strict=True
        ):
            getattr(layer, name).weight.copy_(weight)
            getattr(layer, name).bias.copy_(bias)
    layer.out_proj.load_state_dict(plain.out_proj.state_dict())
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(layer(x), plain(x, x, x)[0])
    torch.testing.assert_close(layer(x, context), plain(x, context, context)[0])
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = plain(x, x, x, attn_mask=~allowed)[0]
    torch.testing.assert_close(layer(x, mask=allowed[None, None]), expected)


def test_attention_of_other_widths():
    torch.manual_seed(0)
    layer = Attention(12, 4, context_dim=10, kv_heads=2, head_dim=8, bias=False, out_bias=False)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "q_proj.weight": (32, 12),
        "k_proj.weight": (16, 10),
        "v_proj.weight": (16, 10),
        "out_proj.weight": (12, 32),
    }
    assert layer(torch.randn(2, 5, 12), torch.randn(2, 3, 10)).shape == (2, 5, 12)


def test_added_keys_are_before_its_own():
    torch.manual_seed(0)
    layer = Attention(12, 3, added_dim=7).requires_grad_(False)
    x, added = torch.randn(2, 5, 12), torch.randn(2, 4, 7)
    q, k, v = (project(x) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    k = torch.cat([layer.added_k_proj(added), k], 1)
    v = torch.cat([layer.added_v_proj(added), v], 1)
    heads = (y.unflatten(2, (3, 4)).transpose(1, 2) for y in (q, k, v))
    expected = layer.out_proj(attend(*heads).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, added=added), expected)

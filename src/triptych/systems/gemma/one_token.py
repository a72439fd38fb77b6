"""The newest token of an answer through the blocks of a packed Gemma: `model.py` in fewer calls.

The weights of a layer, streamed past, push the interpreter's code out of the nearest caches, so
that what a block does besides its products costs as much as these. Here the state is a vector, and
tensors are at hand without modules.

Dimensions: D width, H heads, K key/value heads, G both of queries and keys, C head width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.attention import attend
from triptych.nn.cache import LayerCache
from triptych.nn.norm import RmsNorm
from triptych.nn.packed import PackedLinear, Product
from triptych.systems.gemma.model import GemmaBlock, GemmaConfig, Rotation

Vector = Float[Tensor, " D"]
ZERO = torch.zeros(())


class Layer(NamedTuple):
    """The tensors of a block; None where its generation has no such norm."""

    attn_norm: Vector
    joined: Sequence[Product]
    """Queries, keys and values."""
    head_scales: Float[Tensor, "G C"] | None
    """Of the norms of queries and keys, times the root of the head width."""
    out: Sequence[Product]
    attn_post_norm: Vector | None
    mlp_norm: Vector
    both: Sequence[Product]
    """Gate and up."""
    down: Sequence[Product]
    mlp_post_norm: Vector | None


class OneToken:
    """All blocks of a packed model, for one token of one text."""

    def __init__(self, config: GemmaConfig, blocks: Sequence[GemmaBlock]):
        """The weights of norms include their offsets already."""
        self.config = config
        self.layers = [_layer(config, block) for block in blocks]
        self.least = torch.tensor((config.head_width * config.eps) ** 0.5)

    def __call__(
        self,
        x: Float[Tensor, "1 1 D"],
        rotations: Mapping[int | None, Rotation],
        caches: Sequence[LayerCache],
    ) -> Float[Tensor, "1 1 D"]:
        """The states after the last block."""
        state, eps = x.view(-1), self.config.eps
        flat = {
            window: (cos.view(1, -1), _signed(sin.view(1, -1)))
            for window, (cos, sin) in rotations.items()
        }
        for layer, cache in zip(self.layers, caches, strict=True):
            normed = torch.addcmul(ZERO, state, layer.attn_norm, value=_factor(state, eps))
            found = self._attend(layer, normed, flat[cache.window], cache)
            state = _add(state, found, layer.attn_post_norm, eps)
            normed = torch.addcmul(ZERO, state, layer.mlp_norm, value=_factor(state, eps))
            gate, up = _multiply(layer.both, normed).view(2, -1)
            found = _multiply(layer.down, F.gelu(gate, approximate="tanh").mul_(up))
            state = _add(state, found, layer.mlp_post_norm, eps)
        return state.view(1, 1, -1)

    def _attend(
        self,
        layer: Layer,
        normed: Vector,
        rotation: Rotation,
        cache: LayerCache,
    ) -> Vector:
        config, (cos, sin) = self.config, rotation
        heads, kv_heads, width = config.heads, config.kv_heads, config.head_width
        rows = _multiply(layer.joined, normed).view(-1, width)
        turned = rows.narrow(0, 0, heads + kv_heads)
        if layer.head_scales is not None:
            # divided by the root of (sum of squares + width * eps)
            length = torch.hypot(torch.linalg.vector_norm(turned, 2, 1, True), self.least)
            turned = (turned / length).mul_(layer.head_scales)
        turned = turned * cos + turned.roll(width // 2, 1) * sin
        k = turned.narrow(0, heads, kv_heads).view(1, kv_heads, 1, width)
        v = rows.narrow(0, heads + kv_heads, kv_heads).view(1, kv_heads, 1, width)
        keys, values = cache.extend(k, v)
        q = turned.narrow(0, 0, heads).view(1, heads, 1, width)
        scale, cap = config.query_scale**-0.5, config.attention_cap
        seen = attend(q, keys, values, scale=scale, softcap=cap)
        return _multiply(layer.out, seen.reshape(-1))


def _layer(config: GemmaConfig, block: GemmaBlock) -> Layer:
    attn, mlp, scales = block.attn, block.mlp, None
    if config.head_norms:
        each = ((attn.q_norm.weight, config.heads), (attn.k_norm.weight, config.kv_heads))
        scales = torch.cat([weight.detach().expand(count, -1) for weight, count in each])
        scales = scales * config.head_width**0.5
    return Layer(
        block.attn_norm.weight.detach(),
        _products(attn.joined),
        scales,
        _products(attn.out_proj),
        _scale(block.attn_post_norm),
        block.mlp_norm.weight.detach(),
        _products(mlp.joined),
        _products(mlp.down),
        _scale(block.mlp_post_norm),
    )


def _products(layer: nn.Module | None) -> Sequence[Product]:
    assert isinstance(layer, PackedLinear)
    return list(layer.products)  # type: ignore[arg-type]


def _scale(norm: nn.Module) -> Vector | None:
    return norm.weight.detach() if isinstance(norm, RmsNorm) else None


def _multiply(products: Sequence[Product], x: Float[Tensor, " I"]) -> Float[Tensor, " O"]:
    if len(products) == 1:
        return products[0].multiply_one(x)
    return torch.cat([product.multiply_one(x) for product in products])


def _signed(sin: Float[Tensor, "1 C"]) -> Float[Tensor, "1 C"]:
    """Sines for states whose halves change places, as numbers: the first half is subtracted."""
    half = sin.shape[1] // 2
    return torch.cat([-sin[:, :half], sin[:, half:]], 1)


def _factor(x: Vector, eps: float) -> float:
    """One by the root of the mean square."""
    return float((torch.dot(x, x).item() / x.shape[0] + eps) ** -0.5)


def _add(x: Vector, found: Vector, scale: Vector | None, eps: float) -> Vector:
    """What a layer found, added to its input after a norm, where there is one."""
    if scale is None:
        return x + found
    return torch.addcmul(x, found, scale, value=_factor(found, eps))

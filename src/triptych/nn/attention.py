"""Attention, for every transformer and U-Net here.

Dimensions: B batch, T queries, S keys, D width, E context width, H heads, K key/value heads, C head
width, F output width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import runtime
from triptych.nn.cache import LayerCache

FEW = 256
"""Up to this length plain matmuls may train faster on a CPU than the fused kernel."""
FEW_HALVES = 200
"""The same in bfloat16, on a CPU with instructions for it."""
TILE = 2 << 20
"""Scores in memory at a time: 4 MB of bfloat16, which fit into a large cache."""
SAMPLED = 4
"""Every fourth key is used to estimate the largest score of a row."""
LEAST = 64 * 64
"""Scores of a head from which a matmul of a few heads at a time is efficient."""


def attend(
    q: Float[Tensor, "B H T C"],
    k: Float[Tensor, "B K S C"],
    v: Float[Tensor, "B K S C"],
    mask: Bool[Tensor, "#B #H #T S"] | Float[Tensor, "#B #H #T S"] | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T C"]:
    """Softmax attention; fewer key/value heads than query heads is grouped-query attention.

    A boolean mask is True where attention is allowed; a float mask is added to the scores (T5's
    relative bias). `softcap` bounds the scores smoothly (Gemma 2); no fused kernel supports it.
    """
    grouped = bool(q.shape[1] != k.shape[1])  # bool: sizes are tensors in a trace
    learns = torch.is_grad_enabled() and q.requires_grad
    if grouped and softcap is None and q.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
        # one query: those of a group as queries of one head, at a third of the time
        folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        return attend(folded, k, v, mask, scale=scale).reshape(q.shape)
    if not (learns or grouped or softcap) and mask is None and _quick_products(q, k):
        return _in_tiles(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is None and not (learns and q.device.type == "cpu" and _slow_backward(q, k)):
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    # scaling the queries, not the scores, saves a pass over (B, H, T, S)
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(v.dtype) @ v


def _quick_products(q: Tensor, k: Tensor) -> bool:
    """Whether bfloat16 matmuls beat the fused kernel, which multiplies in float32 on a CPU without
    AMX: 165 against 284 ms for 16 heads of 4,096 x 4,096 x 40 on a Zen 5, 18 against 30 for
    1,024 x 1,024 x 80, 70 against 169 for one of 4,096 x 4,096 x 512 (with all keys in the first
    product).
    """
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
    return (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and runtime.multiplies_bfloat16()
        and not traced
        and q.shape[2] * k.shape[2] >= LEAST
    )


def _in_tiles(
    q: Float[Tensor, "B H T C"],
    k: Float[Tensor, "B H S C"],
    v: Float[Tensor, "B H S C"],
    scale: float,
) -> Float[Tensor, "B H T C"]:
    """Softmax attention by plain matmuls, a few heads or rows of queries at a time.

    The result of a bfloat16 matmul is rounded to bfloat16, which would lose the precision of large
    scores. So the maximum of each row is estimated first and subtracted inside the matmul, by one
    more column, before rounding: the largest weights then have the smallest error. A quarter of the
    keys estimates it well enough; where a weight overflows, the maximum of all keys is used. A
    column of ones beside the values sums the rounded weights.
    """
    batch, heads, queries, width = q.shape
    q, k, v = (x.reshape(batch * heads, -1, width) for x in (q, k, v))
    one, zero = k.new_ones(()), k.new_zeros(())
    keys = torch.cat([k, one.expand(*k.shape[:2], 1)], 2).transpose(1, 2)  # (B H, C + 1, S)
    values = torch.cat([v, one.expand(*v.shape[:2], 1)], 2)  # (B H, S, C + 1)
    sampled = k[:, ::SAMPLED].contiguous().transpose(1, 2)  # (B H, C, S / 4)
    output = torch.empty_like(q)
    rows = min(queries, max(1, TILE // k.shape[1]))
    few = max(1, TILE // (rows * k.shape[1]))
    for n in range(0, batch * heads, few):
        some, those = keys[n : n + few], values[n : n + few]
        for i in range(0, queries, rows):
            rows_q = q[n : n + few, i : i + rows]
            for candidates in (sampled[n : n + few], some[:, :width]):
                largest = (rows_q @ candidates).amax(-1, keepdim=True)
                below = torch.cat([rows_q, -largest], 2)
                weights = torch.baddbmm(zero, below, some, beta=0, alpha=scale).exp_()
                weighed = weights @ those
                if weighed[..., width].isfinite().all():
                    break
            output[n : n + few, i : i + rows] = weighed[..., :width] / weighed[..., width:]
    return output.view(batch, heads, queries, width)


def _slow_backward(q: Tensor, k: Tensor) -> bool:
    """Whether plain matmuls train faster on this CPU than the fused kernel.

    With AVX2 they do for all short sequences; with AVX-512 only for many queries and few keys, such
    as pixels that attend to a text (forward and backward of 256 pixels to 24 tokens: 18 against
    24 ms, to 256 pixels: 203 against 77). In bfloat16 they do up to a length of about 200: 256
    heads of 16 x 16 1.2 against 12 ms, of 64 x 64 11 against 32, 192 of 196 x 196 83 against 97
    (one core of a Zen 5); 2.2 against 25, 13 against 56, 64 of 196 x 196 18 against 39, and not at
    256 (one core of a Xeon with AMX).
    """
    queries, keys = q.shape[2], k.shape[2]
    if q.dtype == torch.bfloat16 and runtime.fast_bfloat16():
        return max(queries, keys) <= FEW_HALVES
    if max(queries, keys) > FEW:
        return False
    return torch.backends.cpu.get_cpu_capability() != "AVX512" or 2 * keys <= queries


class Attention(nn.Module):
    """Self-attention, or cross-attention when a context is given (to text: Stable Diffusion)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        out_dim: int | None = None,
        added_dim: int | None = None,
    ):
        """With `added_dim`, the keys and values of further tokens of that width are added."""
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        head_dim = head_dim or dim // heads
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(context_dim or dim, self.kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(context_dim or dim, self.kv_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(heads * head_dim, out_dim or dim, bias=out_bias)
        if added_dim is not None:
            self.added_k_proj = nn.Linear(added_dim, self.kv_heads * head_dim, bias=bias)
            self.added_v_proj = nn.Linear(added_dim, self.kv_heads * head_dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S E"] | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        added: Float[Tensor, "B A G"] | None = None,
    ) -> Float[Tensor, "B T F"]:
        """With a cache, `x` are new places, and `mask` is over everything that they may see. The
        keys of `added` tokens come before the others, also in the mask.
        """
        context = x if context is None else context
        keys, values = self.k_proj(context), self.v_proj(context)  # (B, S, K C)
        if added is not None:
            keys = torch.cat([self.added_k_proj(added), keys], dim=1)
            values = torch.cat([self.added_v_proj(added), values], dim=1)
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, C)
        k = keys.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, S, C)
        v = values.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, S, C)
        if cache is not None:
            k, v = cache.extend(k, v)
        output: Tensor = self.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return output  # (B, T, F)

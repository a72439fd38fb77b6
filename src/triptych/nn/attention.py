"""Attention, written once and used by every transformer and U-Net here.

Dimensions: B batch, T queries, S keys, D width, E context width, H heads, K key/value heads, C head
width, F output width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 256
"""Up to as many queries and keys the fused kernel's backward pass can be slow on a CPU."""


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
    relative bias). `softcap` bounds the scores smoothly (Gemma 2), which no fused kernel offers.
    """
    grouped = bool(q.shape[1] != k.shape[1])  # a tensor where the network is traced
    learns = torch.is_grad_enabled() and q.requires_grad
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


def _slow_backward(q: Tensor, k: Tensor) -> bool:
    """Whether a CPU learns faster through plain products than through the fused kernel.

    With AVX2 it does for all short sequences; with AVX-512 only where many queries look at few
    keys, as pixels do at a text (forward and backward of 256 pixels at 24 tokens: 18 against 24 ms,
    at each other: 203 against 77).
    """
    queries, keys = q.shape[2], k.shape[2]
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
    ):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        head_dim = head_dim or dim // heads
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(context_dim or dim, self.kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(context_dim or dim, self.kv_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(heads * head_dim, out_dim or dim, bias=out_bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S E"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B T F"]:
        context = x if context is None else context
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, C)
        k = self.k_proj(context).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, S, C)
        v = self.v_proj(context).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, S, C)
        output: Tensor = self.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return output  # (B, T, F)

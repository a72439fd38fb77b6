"""Pre-norm transformers: the block, a stack of blocks, and pooling by attention.

Dimensions: B batch, T positions, S keys, D width, M hidden width.
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.attention import Attention
from triptych.nn.cache import Cache, LayerCache

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
"""`quick_gelu` is x * sigmoid(1.702 x), as OpenAI's CLIP was trained; `gelu_tanh` the tanh form of
arXiv:1606.08415. The three differ by up to 0.02, so a checkpoint's activation is never guessed.
"""


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), a coarse GELU (arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": gelu_tanh,
}


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu"):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        result: Tensor = self.down(self.activation(self.up(x)))
        return result


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection (arXiv:2002.04745).

    `layer_scale` scales each residual branch per channel (arXiv:2103.17239).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        activation: Activation = "gelu",
        eps: float = 1e-5,
        layer_scale: bool = False,
    ):
        super().__init__()
        self.attn_norm = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, hidden, activation)
        self.attn_scale = nn.Parameter(torch.full((dim,), 1e-4)) if layer_scale else None
        self.mlp_scale = nn.Parameter(torch.full((dim,), 1e-4)) if layer_scale else None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        return self._add(x, self.attn(self.attn_norm(x), mask=mask, cache=cache))

    def alone(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """`forward` with every position attending only to itself, for local features
        (arXiv:2112.01071).
        """
        return self._add(x, self.attn.out_proj(self.attn.v_proj(self.attn_norm(x))))

    def at(
        self,
        x: Float[Tensor, "B T D"],
        places: Int64[Tensor, " B"],
        mask: Bool[Tensor, "*B T T"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """`forward` at one position of each row, without computing the others."""
        rows = torch.arange(len(x), device=x.device)
        normed = self.attn_norm(x)
        row_mask = None
        if mask is not None:
            chosen = mask[places] if mask.ndim == 2 else mask[rows, places]
            row_mask = chosen[:, None, None]  # (B, 1, 1, T)
        added = self.attn(normed[rows, places][:, None], normed, row_mask)
        return self._add(x[rows, places][:, None], added)[:, 0]

    def _add(self, x: Tensor, added: Tensor) -> Tensor:
        """Adds the attention's output, then the MLP's."""
        x = x + (added if self.attn_scale is None else added * self.attn_scale)
        added = self.mlp(self.mlp_norm(x))
        return x + (added if self.mlp_scale is None else added * self.mlp_scale)


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        *,
        activation: Activation = "gelu",
        eps: float = 1e-5,
        layer_scale: bool = False,
        quiet: bool = False,
    ):
        """`quiet` initialises the stack to the identity (as in arXiv:2003.04887)."""
        super().__init__()
        blocks = [
            Block(dim, heads, hidden, activation=activation, eps=eps, layer_scale=layer_scale)
            for _ in range(layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        # CLIP's published scheme: a residual stream that does not grow with depth
        deep = 0.0 if quiet else dim**-0.5 * (2 * max(1, layers)) ** -0.5
        for block in blocks:
            for projection in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj):
                nn.init.normal_(projection.weight, std=dim**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=deep)
            nn.init.normal_(block.mlp.up.weight, std=(2 * dim) ** -0.5)
            nn.init.normal_(block.mlp.down.weight, std=deep)
            for layer in (*block.attn.children(), block.mlp.up, block.mlp.down):
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """With a cache, `x` are new places, and `mask` is over everything that they may see."""
        for number, block in enumerate(self.blocks):
            x = block(x, mask, None if cache is None else cache.layers[number])
        return x

    def alone(
        self, x: Float[Tensor, "B T D"], mask: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """`forward` with every position of the last block attending only to itself."""
        for block in self.blocks[:-1]:
            x = block(x, mask)
        return cast(Block, self.blocks[-1]).alone(x)

    def at(
        self,
        x: Float[Tensor, "B T D"],
        places: Int64[Tensor, " B"],
        mask: Bool[Tensor, "*B T T"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """`forward` at one position of each row; the last block computes only that position. The
        mask is one for all rows, or one for each.
        """
        wide = mask
        if mask is not None:
            wide = mask[None, None] if mask.ndim == 2 else mask[:, None]  # (B, 1, T, T)
        for block in self.blocks[:-1]:
            x = block(x, wide)
        return cast(Block, self.blocks[-1]).at(x, places, mask)


class AttentionPool(nn.Module):
    """One learned query attends to all positions, then an MLP (arXiv:2106.04560, section 3.2)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        activation: Activation = "gelu",
        eps: float = 1e-6,
    ):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, hidden, activation)

    def forward(
        self, x: Float[Tensor, "B S D"], mask: Bool[Tensor, "B 1 1 S"] | None = None
    ) -> Float[Tensor, "B D"]:
        pooled = self.attn(self.probe.to(x.dtype).expand(len(x), 1, -1), x, mask)
        result: Tensor = pooled + self.mlp(self.norm(pooled))
        return result[:, 0]

    def alone(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Pools every position by itself."""
        pooled = self.attn.out_proj(self.attn.v_proj(x))
        result: Tensor = pooled + self.mlp(self.norm(pooled))
        return result

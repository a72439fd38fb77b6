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

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
"""`quick_gelu` is x * sigmoid(1.702 x), as OpenAI's CLIP was trained; `gelu_tanh` the tanh form of
arXiv:1606.08415. The three differ by up to 0.02, so which one a checkpoint means is never guessed.
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
    """Attention, then an MLP, each on a normalised copy and added (arXiv:2002.04745).

    `layer_scale` weighs what is added, channel by channel (arXiv:2103.17239).
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

    def forward(self, x: Float[Tensor, "B T D"], mask: Tensor | None = None) -> Tensor:
        return self._add(x, self.attn(self.attn_norm(x), mask=mask))

    def alone(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Every position attends to itself alone: what it says of its own place
        (arXiv:2112.01071).
        """
        return self._add(x, self.attn.out_proj(self.attn.v_proj(self.attn_norm(x))))

    def at(
        self,
        x: Float[Tensor, "B T D"],
        places: Int64[Tensor, " B"],
        mask: Bool[Tensor, "T T"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """What `forward` gives at one place of each row, without computing the others."""
        rows = torch.arange(len(x), device=x.device)
        normed = self.attn_norm(x)
        seen = None if mask is None else mask[places][:, None, None]  # (B, 1, 1, T)
        added = self.attn(normed[rows, places][:, None], normed, seen)
        return self._add(x[rows, places][:, None], added)[:, 0]

    def _add(self, x: Tensor, added: Tensor) -> Tensor:
        """The attention's answer, then the MLP's."""
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
        """`quiet` blocks add nothing at first (as in arXiv:2003.04887): the stack begins as what it
        is given.
        """
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

    def forward(self, x: Float[Tensor, "B T D"], mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x

    def alone(
        self, x: Float[Tensor, "B T D"], mask: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """As `forward`, but in the last block every position attends to itself alone."""
        *before, last = (cast(Block, block) for block in self.blocks)
        for block in before:
            x = block(x, mask)
        result: Tensor = last.alone(x)
        return result

    def at(
        self,
        x: Float[Tensor, "B T D"],
        places: Int64[Tensor, " B"],
        mask: Bool[Tensor, "T T"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """What `forward` gives at one place of each row; the last block computes that place
        alone.
        """
        *before, last = (cast(Block, block) for block in self.blocks)
        for block in before:
            x = block(x, None if mask is None else mask[None, None])
        result: Tensor = last.at(x, places, mask)
        return result


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
        answered: Tensor = pooled + self.mlp(self.norm(pooled))
        return answered[:, 0]

    def alone(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Every position pooled as if it were the only one."""
        pooled = self.attn.out_proj(self.attn.v_proj(x))
        result: Tensor = pooled + self.mlp(self.norm(pooled))
        return result

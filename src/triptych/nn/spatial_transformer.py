"""Transformer blocks over pixels, with cross-attention to a context such as a text.

Rombach et al. (arXiv:2112.10752, section 3.3 and appendix E.2.1).

Dimensions: B batch, C channels, H height, W width, T pixels as tokens, D width of a token, S tokens
of the context, E their width.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.attention import Attention
from triptych.nn.norm import GroupNorm


class GatedMlp(nn.Module):
    """An MLP whose hidden layer is multiplied by a gate: GEGLU (arXiv:2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        result: Tensor = self.down(self.up(x) * F.gelu(self.gate(x)))
        return result


class ContextBlock(nn.Module):
    """Self-attention of pixels, cross-attention to the context, and an MLP, each residual.

    With `only_context` the first attention is to the context too, which is cheaper for large
    pictures.
    """

    def __init__(self, dim: int, heads: int, context: int, *, only_context: bool = False):
        super().__init__()
        self.only_context = only_context
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, context_dim=context if only_context else dim, bias=False)
        self.context_norm = nn.LayerNorm(dim)
        self.context_attn = Attention(dim, heads, context_dim=context, bias=False)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = GatedMlp(dim, 4 * dim)

    def forward(
        self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B S E"]
    ) -> Float[Tensor, "B T D"]:
        x = x + self.attn(self.attn_norm(x), context if self.only_context else None)
        x = x + self.context_attn(self.context_norm(x), context)
        added: Tensor = self.mlp(self.mlp_norm(x))
        return x + added


class SpatialTransformer(nn.Module):
    """Transformer blocks over pixels as tokens, with a residual connection.

    The output projection is initialised to zero, so that a new one is the identity. Some published
    networks have 1 x 1 convolutions as projections, which compute the same.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        blocks: int,
        context: int,
        *,
        groups: int = 32,
        only_context: bool = False,
    ):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            ContextBlock(channels, heads, context, only_context=only_context) for _ in range(blocks)
        )
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B S E"]
    ) -> Float[Tensor, "B C H W"]:
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, T, C)
        for block in self.blocks:
            tokens = block(tokens, context)
        change: Tensor = self.proj_out(tokens)
        return x + change.transpose(1, 2).reshape(x.shape)

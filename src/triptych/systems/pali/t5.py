"""T5's form of encoder and decoder (arXiv:1910.10683, with the gated MLPs of version 1.1): the text
half of PaLI-3.

Dimensions: B batch, T queries, S keys, D width, H heads, C head width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.attention import attend
from triptych.nn.cache import LayerCache
from triptych.nn.checks import require_at_least
from triptych.nn.norm import RmsNorm
from triptych.systems.gemma.model import GatedMlp

Pair = tuple[Tensor, Tensor]
"""Keys and values (B, H, S, C)."""


@dataclass(frozen=True)
@bounded
class T5Config:
    """Sizes. The defaults are T5 1.1 XL, which UL2's 3B model follows."""

    vocabulary: int = 32_128
    width: int = 2048
    layers: int = 24
    """Layers of the encoder."""
    decoder_layers: int = 24
    heads: int = 32
    head_width: int = 64
    hidden: int = 5120
    buckets: int = 32
    """Distances that are told apart."""
    distance: int = 128
    """From here on all distances are one bucket."""
    context: int = 4096
    """The most tokens that are read, pictures included, and written; positions have no limit."""
    tied: bool = False
    """The table of token embeddings is the matrix of the logits too, whose states are then scaled
    by the inverse root of the width.
    """
    eps: float = 1e-6

    def __post_init__(self) -> None:
        names = ("vocabulary", "width", "layers", "decoder_layers", "heads", "head_width", "hidden")
        require_at_least(self, 1, *names, "context")
        require_at_least(self, 4, "buckets")
        if self.buckets % 2 or self.distance <= self.buckets:
            raise ValueError(
                f"buckets must be even and fewer than distance: {self.buckets}, {self.distance}"
            )


class T5Attention(nn.Module):
    """Attention of states to themselves or to others. Scores are not scaled: the weights are."""

    def __init__(self, config: T5Config):
        super().__init__()
        inner = config.heads * config.head_width
        self.head_width = config.head_width
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, inner, bias=False)
        self.v_proj = nn.Linear(config.width, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.width, bias=False)
        nn.init.normal_(self.q_proj.weight, std=(config.width * config.head_width) ** -0.5)
        for layer in (self.k_proj, self.v_proj):
            nn.init.normal_(layer.weight, std=config.width**-0.5)
        nn.init.normal_(self.out_proj.weight, std=inner**-0.5)

    def keys(self, x: Float[Tensor, "B S D"]) -> Pair:
        """Keys and values of states."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def forward(
        self, x: Float[Tensor, "B T D"], seen: Pair, bias: Float[Tensor, "#B #H T S"] | None
    ) -> Float[Tensor, "B T D"]:
        """`bias` is added to the scores; None for none."""
        q = self._heads(self.q_proj(x))
        found = attend(q, *seen, None if bias is None else bias.to(q.dtype), scale=1.0)
        output: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return output

    def _heads(self, x: Float[Tensor, "B S I"]) -> Float[Tensor, "B H S C"]:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


class EncoderBlock(nn.Module):
    """Attention in both directions and a gated MLP, each after a norm."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.attn_norm = RmsNorm(config.width, config.eps, offset=0.0)
        self.attn = T5Attention(config)
        self.mlp_norm = RmsNorm(config.width, config.eps, offset=0.0)
        self.mlp = _mlp(config)

    def forward(self, x: Float[Tensor, "B S D"], bias: Tensor) -> Float[Tensor, "B S D"]:
        normed = self.attn_norm(x)
        x = x + self.attn(normed, self.attn.keys(normed), bias)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class DecoderBlock(nn.Module):
    """Causal attention, attention to what the encoder read, and a gated MLP, each after a norm."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.attn_norm = RmsNorm(config.width, config.eps, offset=0.0)
        self.attn = T5Attention(config)
        self.cross_norm = RmsNorm(config.width, config.eps, offset=0.0)
        self.cross = T5Attention(config)
        self.mlp_norm = RmsNorm(config.width, config.eps, offset=0.0)
        self.mlp = _mlp(config)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        bias: Tensor,
        memory: Pair,
        hidden: Tensor | None,
        cache: LayerCache | None,
    ) -> Float[Tensor, "B T D"]:
        normed = self.attn_norm(x)
        seen = self.attn.keys(normed)
        if cache is not None:
            seen = cache.extend(*seen)
        x = x + self.attn(normed, seen, bias)
        x = x + self.cross(self.cross_norm(x), memory, hidden)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class Memory:
    """What the encoder read, for every layer of the decoder, and the cache of what was written."""

    def __init__(self, pairs: Sequence[Pair], hidden: Float[Tensor, "B 1 1 S"] | None):
        self.pairs, self.hidden = pairs, hidden
        self.layers = [LayerCache() for _ in pairs]

    @property
    def count(self) -> int:
        """Tokens that were written."""
        return self.layers[0].count


class T5(nn.Module):
    """An encoder that reads states of any origin, and a decoder that writes tokens."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.encoder_bias = nn.Embedding(config.buckets, config.heads)
        self.encoder_norm = RmsNorm(config.width, config.eps, offset=0.0)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.decoder_bias = nn.Embedding(config.buckets, config.heads)
        self.decoder_norm = RmsNorm(config.width, config.eps, offset=0.0)
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
            nn.init.normal_(self.head.weight, std=config.width**-0.5)
        for bias in (self.encoder_bias, self.decoder_bias):
            nn.init.normal_(bias.weight, std=config.width**-0.5)

    def encode(
        self, x: Float[Tensor, "B S D"], seen: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """The states of a row of embeddings; `seen` is False for padding."""
        places = torch.arange(x.shape[1], device=x.device)
        bias = self._bias(self.encoder_bias, places, places, both=True)
        if seen is not None:
            bias = bias + hide(seen)
        for block in self.encoder:
            x = block(x, bias)
        normed: Tensor = self.encoder_norm(x)
        return normed

    def remember(
        self, states: Float[Tensor, "B S D"], seen: Bool[Tensor, "B S"] | None = None
    ) -> Memory:
        """What `write` needs of the encoder's states."""
        pairs = [block.cross.keys(states) for block in self.decoder]  # type: ignore[operator, union-attr]
        return Memory(pairs, None if seen is None else hide(seen))

    def write(
        self, tokens: Int64[Tensor, "B T"], memory: Memory, *, keep: bool = False
    ) -> Float[Tensor, "B T D"]:
        """The states after the last norm for tokens that were written: all, or with `keep` new ones
        after those before.
        """
        begin = memory.count if keep else 0
        x = self.token(tokens)
        places = torch.arange(begin + tokens.shape[1], device=tokens.device)
        bias = self._bias(self.decoder_bias, places[begin:], places, both=False)
        ahead = places[None] > places[begin:, None]
        bias = bias.masked_fill(ahead, -torch.inf)
        for block, pair, layer in zip(self.decoder, memory.pairs, memory.layers, strict=True):
            x = block(x, bias, pair, memory.hidden, layer if keep else None)
        normed: Tensor = self.decoder_norm(x)
        return normed

    def logits(self, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """The logits of the next token."""
        if not self.config.tied:
            head: Tensor = self.head(states)
            return head
        return F.linear(states * self.config.width**-0.5, self.token.weight)

    def _bias(
        self,
        table: nn.Embedding,
        queries: Int64[Tensor, " T"],
        keys: Int64[Tensor, " S"],
        *,
        both: bool,
    ) -> Float[Tensor, "1 H T S"]:
        distances = keys[None] - queries[:, None]
        number = bucket(distances, self.config.buckets, self.config.distance, both=both)
        bias: Tensor = table(number)
        return bias.permute(2, 0, 1)[None]


def bucket(
    distances: Int64[Tensor, "T S"], buckets: int, most: int, *, both: bool
) -> Int64[Tensor, "T S"]:
    """Numbers of the buckets of distances from queries to keys: one for each of the nearest, then
    ever wider ones up to `most`. With `both` the first half is for keys before, the second for
    those after; without, keys after are in the bucket of the query itself.
    """
    offset = torch.zeros_like(distances)
    if both:
        buckets //= 2
        offset = (distances > 0).long() * buckets
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    exact = buckets // 2
    growth = torch.log(distances.clamp(min=1).float() / exact) / math.log(most / exact)
    wide = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distances < exact, distances, wide)


def hide(seen: Bool[Tensor, "B S"]) -> Float[Tensor, "B 1 1 S"]:
    """What is added to scores so that padding is not seen."""
    zeros = torch.zeros(seen.shape, device=seen.device)
    return zeros.masked_fill(~seen, -torch.inf)[:, None, None]


def _mlp(config: T5Config) -> GatedMlp:
    mlp = GatedMlp(config.width, config.hidden)
    for layer in (mlp.gate, mlp.up, mlp.down):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return mlp

"""Gemma 1, 2 and 3: a decoder of text (arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786).

The generations differ only in values of the configuration.

Dimensions: B batch, T new tokens, S visible tokens, D width, H heads, K key/value heads, C head
width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import runtime
from triptych.fields import bounded
from triptych.nn.attention import attend
from triptych.nn.cache import Cache, LayerCache
from triptych.nn.checks import require_at_least
from triptych.nn.loss import Loss
from triptych.nn.norm import RmsNorm
from triptych.nn.one_row import apply, multiply
from triptych.nn.position import rotary_angles, rotate
from triptych.nn.transformer import gelu_tanh
from triptych.system import ModelKind

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the positions of a call."""


@dataclass(frozen=True)
@bounded
class GemmaConfig:
    """Sizes, and what the generations do differently. The defaults are Gemma 3 270M."""

    vocabulary: int = 262_144
    width: int = 640
    layers: int = 18
    heads: int = 4
    kv_heads: int = 1
    """Key/value heads; each serves `heads / kv_heads` query heads (arXiv:2305.13245)."""
    head_width: int = 256
    hidden: int = 2048
    context: int = 32_768
    """Tokens of the longest text that the model was trained for."""
    post_norms: bool = True
    """Norms after attention and after the MLP too, before each is added (Gemma 2, 3)."""
    head_norms: bool = True
    """Norms of queries and keys, per head (Gemma 3)."""
    attention_cap: float | None = None
    """Bounds attention scores smoothly: c tanh(x / c); 50 in Gemma 2."""
    logit_cap: float | None = None
    """The same for the logits; 30 in Gemma 2."""
    window: int | None = 512
    """Tokens that a sliding layer sees, itself included; None: all layers see everything."""
    pattern: int = 6
    """Every `pattern`-th layer sees everything, the others the window: 2 in Gemma 2, 6 in 3."""
    base: float = 1_000_000.0
    """Rotary base of the layers that see everything; 10,000 in Gemma 1 and 2."""
    window_base: float = 10_000.0
    """Rotary base of sliding layers."""
    stretch: float = 1.0
    """Positions are divided by it in layers that see everything: 8 in Gemma 3 from 4B up."""
    query_scale: float = 256.0
    """Scores are divided by its root: mostly the head width, 144 and 168 in the 27B models."""
    tied: bool = True
    """The table of token embeddings is the matrix of the logits too."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        names = ("vocabulary", "width", "heads", "kv_heads", "head_width", "hidden", "context")
        require_at_least(self, 1, *names, "pattern", *(() if self.window is None else ("window",)))
        require_at_least(self, 1e-6, "base", "window_base", "stretch", "query_scale")
        for name in ("attention_cap", "logit_cap"):
            if getattr(self, name) is not None:
                require_at_least(self, 1e-6, name)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads do not divide into {self.kv_heads} key/value heads"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width must be even, not {self.head_width}")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer, None where it sees everything."""
        return tuple(
            None if (layer + 1) % self.pattern == 0 else self.window for layer in range(self.layers)
        )


@runtime_checkable
class OneTokenBlocks(Protocol):
    """All blocks, of one token of one text."""

    def __call__(
        self,
        x: Float[Tensor, "1 1 D"],
        rotations: Mapping[int | None, Rotation],
        caches: Sequence[LayerCache],
    ) -> Float[Tensor, "1 1 D"]: ...


class GatedMlp(nn.Module):
    """gelu(gate x) * up x, back to the width (GEGLU, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.joined: nn.Module | None = None

    def take(self, joined: nn.Module, down: nn.Module) -> None:
        """Use other layers, the first of which gives gate and up in a row."""
        self.joined, self.down = joined, down  # type: ignore[assignment]
        del self.gate, self.up

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.joined is None:
            gate, up = apply(self.gate, x), apply(self.up, x)
        else:
            gate, up = self.joined(x).chunk(2, -1)
        return apply(self.down, gelu_tanh(gate) * up)


class GemmaAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.config = config
        width, head = config.width, config.head_width
        self.q_proj = nn.Linear(width, config.heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.kv_heads * head, bias=False)
        self.out_proj: nn.Module = nn.Linear(config.heads * head, width, bias=False)
        self.joined: nn.Module | None = None
        self._scales: Tensor | None = None
        if config.head_norms:
            self.q_norm = RmsNorm(head, config.eps)
            self.k_norm = RmsNorm(head, config.eps)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation,
        mask: Bool[Tensor, "#B 1 T S"] | None,
        cache: LayerCache | None,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self._rotated(x, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        scale, cap = self.config.query_scale**-0.5, self.config.attention_cap
        seen = attend(q, k, v, mask, scale=scale, softcap=cap)
        return apply(self.out_proj, seen.transpose(1, 2).flatten(2))

    def take(self, joined: nn.Module, out_proj: nn.Module) -> None:
        """Use other layers, the first of which gives queries, keys and values in a row."""
        self.joined, self.out_proj = joined, out_proj
        del self.q_proj, self.k_proj, self.v_proj

    def _rotated(
        self, x: Float[Tensor, "B T D"], rotation: Rotation
    ) -> tuple[Float[Tensor, "B H T C"], Float[Tensor, "B K T C"], Float[Tensor, "B K T C"]]:
        """Queries, keys and values by heads, at their positions."""
        config = self.config
        shape = (*x.shape[:2], -1, config.head_width)
        if self.joined is not None:
            whole = self.joined(x).view(shape).transpose(1, 2)  # (B, H + 2 K, T, C)
            turned, v = whole.split((config.heads + config.kv_heads, config.kv_heads), 1)
            if config.head_norms:
                turned = F.rms_norm(turned, shape[3:], None, config.eps) * self._head_scales()
            q, k = rotate(turned, *rotation).split((config.heads, config.kv_heads), 1)
            return q, k, v
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (apply(layer, x).view(shape).transpose(1, 2) for layer in layers)
        if config.head_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        # autocast has products of bfloat16 and float32 in float32, where attention is slower
        q, k = (rotate(x, *rotation).to(v.dtype) for x in (q, k))
        return q, k, v

    def _head_scales(self) -> Float[Tensor, "G 1 C"]:
        """What queries and keys are scaled by after their norm, of all heads together."""
        if self._scales is None:
            scales = [
                norm.offset + norm.weight.expand(count, 1, -1)
                for norm, count in (
                    (self.q_norm, self.config.heads),
                    (self.k_norm, self.config.kv_heads),
                )
            ]
            self._scales = torch.cat(scales)
        return self._scales


class GemmaBlock(nn.Module):
    """Attention and a gated MLP, each with a norm before, and in Gemma 2 and 3 one after."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        width, eps = config.width, config.eps
        self.attn_norm = RmsNorm(width, eps)
        self.attn = GemmaAttention(config)
        self.attn_post_norm = RmsNorm(width, eps) if config.post_norms else nn.Identity()
        self.mlp_norm = RmsNorm(width, eps)
        self.mlp = GatedMlp(width, config.hidden)
        self.mlp_post_norm = RmsNorm(width, eps) if config.post_norms else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation,
        mask: Bool[Tensor, "#B 1 T S"] | None,
        cache: LayerCache | None,
    ) -> Float[Tensor, "B T D"]:
        x = x + self.attn_post_norm(self.attn(self.attn_norm(x), rotation, mask, cache))
        result: Tensor = x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
        return result


class Gemma(nn.Module):
    """A causal language model."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.config = config
        self.token: nn.Module = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(GemmaBlock(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.width, config.eps)
        self.head: nn.Module | None = None
        self.one_token: OneTokenBlocks | None = None
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        # scaled by the root of the width in `embed`: unit variance there
        nn.init.normal_(self.token.weight, std=config.width**-0.5)  # type: ignore[arg-type]
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(
        self, tokens: Int64[Tensor, "B T"], cache: Cache | None = None
    ) -> Float[Tensor, "B T V"]:
        """The logits of the token after each of these; with a cache the tokens are new ones."""
        return self.logits(self.states(self.embed(tokens), cache))

    def embed(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The states of tokens before the first block.

        The factor is rounded to the type of the weights, as published models were trained.
        """
        x = self.token(tokens)
        factor = torch.tensor(self.config.width**0.5, dtype=x.dtype).item()
        scaled: Tensor = x * factor
        return scaled

    def states(
        self,
        x: Float[Tensor, "B T D"],
        cache: Cache | None = None,
        *,
        pads: Int64[Tensor, " B"] | None = None,
        prefix: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The states after the last norm, from those of `embed`, or of pictures.

        Args:
            cache: of the places before; it is extended by these.
            pads: padding on the left of each row, where there is no cache, which knows it.
            prefix: places at the start of each row that attend in both directions.
        """
        new, device = x.shape[1], x.device
        seen = cache or Cache(self.config.windows, pads)
        masks, positions = seen.masks(new, prefix, device), seen.positions(new, device)
        rotations = self._rotations(positions, x.dtype)
        if self.one_token is not None and cache is not None and x.numel() == x.shape[2]:
            return self.norm(self.one_token(x, rotations, cache.layers))  # type: ignore[no-any-return]
        for block, layer in zip(self.blocks, seen.layers, strict=True):
            x = block(x, rotations[layer.window], masks[layer.window], layer if cache else None)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """The logits of the next token from states after the last norm."""
        logits = (
            multiply(states, self.get_parameter("token.weight"))
            if self.head is None
            else apply(self.head, states)
        )
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def take(self, token: nn.Module, head: nn.Module) -> None:
        """Use other layers for the vectors of tokens and for the logits."""
        self.token, self.head = token, head

    def take_blocks(self, one_token: OneTokenBlocks) -> None:
        """Use another way through the blocks for a single token after those in a cache."""
        self.one_token = one_token

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def new_cache(self, pads: Int64[Tensor, " B"] | None = None) -> Cache:
        return Cache(self.config.windows, pads)

    def _rotations(
        self, positions: Int64[Tensor, "#B T"], dtype: torch.dtype
    ) -> Mapping[int | None, Rotation]:
        """Cosines and sines by the window of a layer."""
        config = self.config
        settings: dict[int | None, tuple[float, float]] = {None: (config.base, config.stretch)}
        settings |= {window: (config.window_base, 1.0) for window in config.windows if window}
        rotations: dict[int | None, Rotation] = {}
        for window, (base, stretch) in settings.items():
            cos, sin = rotary_angles(positions, config.head_width, base, stretch)
            rotations[window] = cos.to(dtype), sin.to(dtype)
        return rotations


def objective(
    model: Gemma, tokens: Int64[Tensor, "B T"], counted: Bool[Tensor, "B T"] | None = None
) -> Loss:
    """The cross-entropy of each token after those before it, in nats per token.

    `counted` is False for tokens that are not to be learned, such as padding on the right. Chance
    is ln(V).
    """
    logits = model(tokens[:, :-1]).float()
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    kept = torch.ones_like(losses) if counted is None else counted[:, 1:].to(losses)
    return Loss((losses * kept).sum(), kept.sum())


def pad_left(
    rows: Sequence[Sequence[int]], pad: int = 0
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, " B"]]:
    """Rows of tokens of different lengths as one batch, and how much padding each got."""
    longest = max(map(len, rows))
    pads = [longest - len(row) for row in rows]
    batch = [[pad] * count + list(row) for count, row in zip(pads, rows, strict=True)]
    return torch.tensor(batch), torch.tensor(pads)


def prepare(model: Gemma, dtype: torch.dtype | None) -> None:
    """Cast for inference; weights that are stored in float16 are computed in float32."""
    runtime.refuse_float16(dtype)
    if not isinstance(model.token, nn.Embedding):
        return  # its weights are packed
    if dtype is None:
        stored = model.token.weight.dtype
        dtype = torch.float32 if stored == torch.float16 else stored
    model.to(dtype)


KINDS = {"gemma": ModelKind(GemmaConfig, Gemma, prepare, cast_on_read=True)}

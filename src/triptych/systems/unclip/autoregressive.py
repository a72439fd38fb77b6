"""The autoregressive prior: the CLIP embedding of a picture as a sentence (arXiv:2204.06125, 2.2).

The embedding's principal components, those of the largest variance first, are each quantised into
buckets; a causal transformer predicts one code after another from the caption, the text's embedding
and a token that says how near picture and text are. That token is known in training; for new
pictures it is drawn from the upper half, since near ones are wanted.

Texts are padded on the left, so that codes follow the text at once (`nn/cache.py`).

Dimensions: B pictures, N training embeddings, E width of embeddings, T tokens of the text, S width
of their states, D width of the transformer, K components, V buckets, L places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import runtime
from triptych.diffusion.denoiser import Conditioning
from triptych.fields import bounded
from triptych.nn.cache import Cache, visible
from triptych.nn.checks import require_at_least, require_heads
from triptych.nn.decoding import Sampling, decode
from triptych.nn.loss import Loss
from triptych.nn.transformer import Transformer
from triptych.systems.unclip.embeddings import PrincipalComponents, principal_components
from triptych.systems.unclip.prior import drop_rows

BESIDE = 2
"""Tokens between the text and the codes: its embedding, and how near picture and text are."""


@dataclass(frozen=True)
@bounded
class AutoregressiveConfig:
    """Configuration of an autoregressive prior; the defaults are the paper's."""

    dim: int = 1024
    """Width of the embeddings."""
    states: int = 2048
    """Width of the states of the text."""
    length: int = 256
    """Most tokens of a text."""
    components: int = 319
    """Principal components that are coded; in the paper those with 99 % of the variance."""
    buckets: int = 1024
    """Codes of each component."""
    nearness: int = 64
    """Values of the token that says how near picture and text are, each as frequent."""
    width: int = 1664
    layers: int = 24
    heads: int = 26
    hidden: int = 6656
    temperature: float = 1.0
    """Default of `generate`, as is guidance: 0 takes the most likely code."""
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "dim", "states", "length", "components", "layers")
        require_at_least(self, 2, "buckets", "nearness")
        require_at_least(self, 0, "temperature", "guidance")
        require_heads(self)
        if self.components > self.dim:
            raise ValueError(
                f"embeddings of {self.dim} numbers have at most as many components, not "
                f"{self.components}"
            )


class PcaCoder(nn.Module):
    """Embeddings as codes: each principal component in buckets of equal width, and back."""

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, components: int, buckets: int):
        super().__init__()
        self.buckets = buckets
        self.components = PrincipalComponents(dim, components)
        self.register_buffer("low", torch.zeros(components))
        self.register_buffer("high", torch.ones(components))

    def fit(self, embeddings: Float[Tensor, "N E"]) -> None:
        """Take components and ranges from these embeddings."""
        found = principal_components(embeddings.cpu())
        count = len(self.low)
        for name in ("directions", "variances"):
            self.components.get_buffer(name).copy_(found.get_buffer(name)[:count])
        self.components.mean.copy_(found.mean)
        scores = self.scores(embeddings.to(self.low))
        self.low.copy_(scores.amin(0))
        self.high.copy_(scores.amax(0).maximum(self.low + 1e-6))

    def scores(self, image: Float[Tensor, "B E"]) -> Float[Tensor, "B K"]:
        """The components of embeddings."""
        return (image - self.components.mean) @ self.components.directions.T

    def encode(self, image: Float[Tensor, "B E"]) -> Int64[Tensor, "B K"]:
        """Codes from 0 to buckets - 1; components outside the range of training are in the outer
        buckets.
        """
        share = (self.scores(image) - self.low) / (self.high - self.low)
        return (share * self.buckets).floor().clamp(0, self.buckets - 1).long()

    def decode(self, codes: Int64[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        """Embeddings whose components are in the middle of their buckets: within the range at most
        half a bucket from the true ones.
        """
        scores = self.low + (codes + 0.5) / self.buckets * (self.high - self.low)
        return self.components.mean + scores @ self.components.directions


class AutoregressivePrior(nn.Module):
    """Predicts the codes of an image embedding one after another."""

    thresholds: Tensor

    def __init__(self, config: AutoregressiveConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.coder = PcaCoder(config.dim, config.components, config.buckets)
        self.register_buffer("thresholds", torch.zeros(config.nearness - 1))
        self.state_proj = nn.Linear(config.states, width)
        self.text_proj = nn.Linear(config.dim, width)
        self.nearness = nn.Embedding(config.nearness, width)
        self.code = nn.Embedding(config.buckets, width)
        self.text_position = nn.Parameter(0.01 * torch.randn(config.length, width))
        self.code_position = nn.Parameter(0.01 * torch.randn(config.components, width))
        self.transformer = Transformer(width, config.layers, config.heads, config.hidden)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.buckets)
        for embedding in (self.nearness, self.code):
            nn.init.normal_(embedding.weight, std=0.02)

    def fit(self, image: Float[Tensor, "N E"], text: Float[Tensor, "N E"]) -> None:
        """Take the codes, and how near pictures and texts are, from training embeddings."""
        self.coder.fit(image)
        self.fit_nearness(image, text)

    def fit_nearness(self, image: Float[Tensor, "N E"], text: Float[Tensor, "N E"]) -> None:
        """Take how near pictures and texts are from some training embeddings."""
        shares = torch.arange(1, self.config.nearness, dtype=torch.float64) / self.config.nearness
        dots = (image * text).sum(1).double().cpu()
        self.thresholds.copy_(dots.quantile(shares))

    def find_nearness(
        self, image: Float[Tensor, "B E"], text: Float[Tensor, "B E"]
    ) -> Int64[Tensor, " B"]:
        """How near they are, by their dot product: 0 to nearness - 1, each as frequent."""
        return torch.bucketize((image * text).sum(1).contiguous(), self.thresholds, right=True)

    def prefix(
        self, cond: Conditioning, nearness: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B L D"], Int64[Tensor, " B"]]:
        """What stands before the codes, padded on the left, and the padding of each row."""
        mask = cond["mask"]
        lengths = mask.sum(1)
        most = int(lengths.max())
        pads = most - lengths
        places = torch.arange(most, device=mask.device) - pads[:, None]  # below 0: padding
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        states = cond["states"][rows, places.clamp(min=0)]
        tokens = self.state_proj(states) + self.text_position[places.clamp(min=0)]
        beside = [self.text_proj(cond["text"])[:, None], self.nearness(nearness)[:, None]]
        return torch.cat([tokens, *beside], dim=1), pads

    def forward(
        self,
        codes: Int64[Tensor, "B K"],
        cond: Conditioning,
        nearness: Int64[Tensor, " B"],
    ) -> Float[Tensor, "B K V"]:
        """The logits of every code, each from the text and the codes before it."""
        before, pads = self.prefix(cond, nearness)
        known = self.code(codes[:, :-1]) + self.code_position[: codes.shape[1] - 1]
        sequence = torch.cat([before, known], dim=1)
        places = torch.arange(sequence.shape[1])
        mask = visible(places, places, pads=pads)
        hidden = self.transformer(sequence, None if mask is None else mask.to(sequence.device))
        logits: Tensor = self.out(self.norm(hidden[:, before.shape[1] - 1 :]))
        return logits


def objective(
    model: AutoregressivePrior,
    image: Float[Tensor, "B E"],
    cond: Conditioning,
    uncond: Conditioning,
    dropped: Bool[Tensor, " B"],
) -> Loss:
    """The cross-entropy of the codes (equation 1), in nats per code.

    Where `dropped`, the text is replaced by `uncond`, the empty one; how near the picture is to its
    own text is still said.
    """
    nearness = model.find_nearness(image, cond["text"])
    codes = model.coder.encode(image)
    logits = model(codes, drop_rows(cond, uncond, dropped), nearness)
    losses = F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none").mean(1)
    return Loss(losses.sum(), len(image), {"nats": losses.detach().mean()})


def sample(
    model: AutoregressivePrior,
    cond: Conditioning,
    uncond: Conditioning,
    seeds: Sequence[int],
    *,
    guidance: float | None = None,
    temperature: float | None = None,
    cached: bool = True,
) -> Iterator[Int64[Tensor, "B k"]]:
    """The codes of image embeddings of these texts, one component after another; `coder.decode`
    makes embeddings of the last. `seeds` are consecutive. Without the cache every code computes all
    places again, for comparison.

    Defaults are the configuration's.
    """
    config = model.config
    scale = config.guidance if guidance is None else guidance
    nearness = draw_nearness(config, seeds).to(model.thresholds.device)
    both = scale != 1
    if both:
        cond = {name: torch.cat([uncond[name], value]) for name, value in cond.items()}
        nearness = nearness.repeat(2)
    before, pads = model.prefix(cond, nearness)
    cache = Cache([None] * config.layers, pads)
    codes: list[Tensor] = []

    def read(hidden: Tensor) -> Tensor:
        logits: Tensor = model.out(model.norm(hidden[:, -1]))
        if not both:
            return logits
        away, towards = logits.chunk(2)
        return away.lerp(towards, scale)

    def advance(x: Tensor) -> Tensor:
        mask = cache.masks(x.shape[1], device=x.device)[None]
        return read(model.transformer(x, mask, cache))

    def again() -> Tensor:
        known = torch.stack(codes, 1).repeat(1 + both, 1)
        x = torch.cat([before, model.code(known) + model.code_position[: len(codes)]], dim=1)
        places = torch.arange(x.shape[1])
        mask = visible(places, places, pads=pads)
        return read(model.transformer(x, None if mask is None else mask.to(x.device)))

    def following(chosen: Tensor) -> Tensor:
        codes.append(chosen)
        if not cached:
            return again()
        x = model.code(chosen.repeat(1 + both)) + model.code_position[len(codes) - 1]
        return advance(x[:, None])

    settings = Sampling(
        temperature=config.temperature if temperature is None else temperature, seed=seeds[0]
    )
    made: list[list[int]] = [[] for _ in seeds]
    for tokens in decode(advance(before), following, limit=config.components, sampling=settings):
        for token in tokens:
            made[token.row].append(token.id)
        yield torch.tensor(made)


def draw_nearness(config: AutoregressiveConfig, seeds: Sequence[int]) -> Int64[Tensor, " B"]:
    """How near pictures and texts are to be: drawn from the upper half, for each seed."""
    half = config.nearness // 2
    drawn = [runtime.key(seed, "nearness") % (config.nearness - half) for seed in seeds]
    return half + torch.tensor(drawn)

"""PaliGemma 1 and 2: a picture and a question become an answer (arXiv:2407.07726,
arXiv:2412.03555).

A row is: tokens of the picture, the prefix (start token, question, newline), the suffix (answer,
end token). Picture and prefix see each other in both directions; the suffix is causal.

Dimensions: B batch, C channels, H height, W width, P tokens of a picture, T tokens of a text,
L places of a row, N wanted tokens, D width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import runtime
from triptych.fields import bounded
from triptych.nn.cache import Cache
from triptych.nn.loss import Loss
from triptych.system import ModelKind
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig
from triptych.systems.siglip.model import SiglipImage, SiglipImageConfig

Averaged = Literal["example", "token"]
"""Whether every answer weighs the same, as in big_vision, or every token, as in transformers."""


@dataclass(frozen=True)
@bounded
class PaliGemmaConfig:
    """An eye without pooling, and a language model. The defaults are PaliGemma 3B at 224 pixels."""

    image: SiglipImageConfig = field(
        default_factory=lambda: SiglipImageConfig(
            224, 14, 1152, 27, 16, 4304, pooled=False
        )
    )  # fmt: skip
    text: GemmaConfig = field(
        default_factory=lambda: GemmaConfig(
            257_152, 2048, 18, 8, 1, 256, 16_384, 8192, post_norms=False, head_norms=False,
            window=None, pattern=1, base=10_000.0,
        )
    )  # fmt: skip
    masks: MaskCodesConfig | None = None
    """What the codes of masks mean, of a model that learned to segment; published PaliGemmas have
    that in a file of its own.
    """

    def __post_init__(self) -> None:
        self.image.require_room(self.text.context)

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.image.size

    @property
    def places(self) -> int:
        """Tokens of a picture."""
        return self.image.tokens


class PaliGemma(nn.Module):
    """SigLIP, a linear projector, Gemma."""

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.config = config
        self.image = SiglipImage(config.image)
        self.projector = nn.Linear(config.image.width, config.text.width)
        self.text = Gemma(config.text)
        self.masks = MaskCodes(config.masks) if config.masks else None
        nn.init.zeros_(self.projector.bias)

    def see(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """The tokens of pictures; unlike those of words they are not scaled by the root of the
        width.
        """
        weight = self.projector.weight
        seen: Tensor = self.projector(self.image.states(pixels.to(weight.dtype)))
        return seen

    def forward(
        self,
        pixels: Float[Tensor, "B C H W"] | None,
        tokens: Int64[Tensor, "B T"],
        prefix: Int64[Tensor, " B"],
        wanted: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"] | Float[Tensor, "N V"]:
        """The logits after each token of prefix and suffix, or after the wanted ones alone; shorter
        rows are padded on the right.

        `prefix` is how many of the tokens are the prefix of each row. Without pictures the words
        are read alone.
        """
        x = self.text.embed(tokens)
        places = 0
        if pixels is not None:
            seen = self.see(pixels)
            x, places = torch.cat([seen.to(x.dtype), x], 1), seen.shape[1]
        states = self.text.states(x, prefix=prefix + places)[:, places:]
        return self.text.logits(states if wanted is None else states[wanted])

    def read(
        self,
        pixels: Float[Tensor, "B C H W"],
        tokens: Int64[Tensor, "B T"],
        pads: Int64[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B V"], Cache]:
        """Read pictures and prefixes, padded on the left: the logits of the first token of each
        answer, and the cache for those that follow.
        """
        words = self.text.embed(tokens)
        seen = self.see(pixels).to(words.dtype)
        # the padding comes before the picture
        rows = [
            torch.cat([word[:pad], picture, word[pad:]])
            for picture, word, pad in zip(seen, words, pads.tolist(), strict=True)
        ]
        x = torch.stack(rows)  # (B, L, D)
        cache = self.text.new_cache(pads)
        whole = torch.full_like(pads, x.shape[1])
        states = self.text.states(x, cache, prefix=whole)
        return self.text.logits(states[:, -1]), cache

    def step(self, tokens: Int64[Tensor, " B"], cache: Cache) -> Float[Tensor, "B V"]:
        """The logits after one more token of each answer."""
        states = self.text.states(self.text.embed(tokens[:, None]), cache)
        return self.text.logits(states[:, -1])


def objective(
    model: PaliGemma,
    pixels: Float[Tensor, "B C H W"] | None,
    tokens: Int64[Tensor, "B T"],
    prefix: Int64[Tensor, " B"],
    lengths: Int64[Tensor, " B"],
    averaged: Averaged = "example",
) -> Loss:
    """The cross-entropy of the tokens of each suffix, its end token included.

    Rows are prefix, suffix, padding; `lengths` are without padding. `example` averages over the
    tokens of an answer, then over answers; `token` over all tokens of the batch. Chance is ln(V).
    """
    places = torch.arange(1, tokens.shape[1], device=tokens.device)[None]
    counted = (places >= prefix[:, None]) & (places < lengths[:, None])  # (B, T - 1)
    # Only of these: with Gemma's 262,144 tokens the others' logits took a quarter of a step.
    logits = model(pixels, tokens[:, :-1], prefix, counted).float()
    losses = F.cross_entropy(logits, tokens[:, 1:][counted], reduction="none")
    if averaged == "token":
        return Loss(losses.sum(), counted.sum())
    row = counted.nonzero()[:, 0]
    sums = losses.new_zeros(len(tokens)).index_add(0, row, losses)
    return Loss((sums / counted.sum(1).clamp(min=1)).sum(), len(tokens))


def prepare(model: PaliGemma, dtype: torch.dtype | None) -> None:
    """Cast for inference; weights that are stored in float16 are computed in float32."""
    runtime.refuse_float16(dtype)
    if not isinstance(model.text.token, nn.Embedding):
        return  # its weights are packed
    if dtype is None:
        stored = model.text.token.weight.dtype
        dtype = torch.float32 if stored == torch.float16 else stored
    model.to(dtype)


KINDS = {"paligemma": ModelKind(PaliGemmaConfig, PaliGemma, prepare, cast_on_read=True)}

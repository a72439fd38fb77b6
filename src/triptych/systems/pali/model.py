"""PaLI-3: a picture and a question become an answer, by an encoder and a decoder
(arXiv:2310.09199), the forerunner of PaliGemma.

The encoder reads the tokens of the picture, then the question; the decoder writes the answer.

Dimensions: B batch, C channels, H height, W width, P tokens of a picture, T tokens of a text,
S places of the encoder, N wanted tokens, D width, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from triptych import runtime
from triptych.fields import bounded
from triptych.system import ModelKind
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig
from triptych.systems.pali.t5 import T5, Memory, T5Config
from triptych.systems.siglip.model import SiglipImage, SiglipImageConfig

START = 0
"""What the decoder begins with: the padding token, as in T5."""


@dataclass(frozen=True)
@bounded
class PaliConfig:
    """An eye without pooling, and a T5. The defaults are about PaLI-3's: ViT-G/14 and 3B."""

    image: SiglipImageConfig = field(
        default_factory=lambda: SiglipImageConfig(
            224, 14, 1664, 48, 16, 8192, pooled=False
        )
    )  # fmt: skip
    text: T5Config = field(default_factory=T5Config)
    masks: MaskCodesConfig | None = None
    """What the codes of masks mean, of a model that learned to segment."""

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


class Pali(nn.Module):
    """SigLIP, a linear projector, T5."""

    def __init__(self, config: PaliConfig):
        super().__init__()
        self.config = config
        self.image = SiglipImage(config.image)
        self.projector = nn.Linear(config.image.width, config.text.width)
        self.text = T5(config.text)
        self.masks = MaskCodes(config.masks) if config.masks else None
        nn.init.zeros_(self.projector.bias)

    def see(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """The tokens of pictures."""
        seen: Tensor = self.projector(self.image.states(pixels.to(self.projector.weight.dtype)))
        return seen

    def forward(
        self,
        pixels: Float[Tensor, "B C H W"] | None,
        tokens: Int64[Tensor, "B T"],
        prefix: Int64[Tensor, " B"],
        wanted: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"] | Float[Tensor, "N V"]:
        """The logits after each token of a row of prefix and suffix, as PaliGemma gives them, from
        the last one of the prefix on, or after the wanted ones alone; what stands before it means
        nothing. Shorter rows are padded on the right.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        asked = tokens[:, : int(prefix.max())]
        known = places[:, : asked.shape[1]] < prefix[:, None]
        memory = self._read(pixels, asked, known)
        # place t of a row is place t - prefix + 1 of the decoder
        moved = (places + prefix[:, None]).clamp(max=tokens.shape[1] - 1)
        suffix = tokens.gather(1, moved)[:, : tokens.shape[1] - int(prefix.min())]
        start = torch.full_like(suffix[:, :1], START)
        states = self.text.write(torch.cat([start, suffix], 1), memory)
        back = (places - prefix[:, None] + 1).clamp(min=0)
        aligned = states.gather(1, back[..., None].expand(-1, -1, states.shape[-1]))
        return self.text.logits(aligned if wanted is None else aligned[wanted])

    def read(
        self,
        pixels: Float[Tensor, "B C H W"],
        tokens: Int64[Tensor, "B T"],
        pads: Int64[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B V"], Memory]:
        """Read pictures and prefixes, padded on the left: the logits of the first token of each
        answer, and the memory for those that follow.
        """
        pads = pads.to(tokens.device)
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        moved = (places + pads[:, None]) % tokens.shape[1]  # padding to the right
        known = places < tokens.shape[1] - pads[:, None]
        memory = self._read(pixels, tokens.gather(1, moved), known)
        start = torch.full_like(tokens[:, :1], START)
        states = self.text.write(start, memory, keep=True)
        return self.text.logits(states[:, -1]), memory

    def step(self, tokens: Int64[Tensor, " B"], cache: Memory) -> Float[Tensor, "B V"]:
        """The logits after one more token of each answer."""
        return self.text.logits(self.text.write(tokens[:, None], cache, keep=True)[:, -1])

    def _read(
        self,
        pixels: Float[Tensor, "B C H W"] | None,
        tokens: Int64[Tensor, "B T"],
        known: Bool[Tensor, "B T"],
    ) -> Memory:
        """The encoder on pictures and questions, padded on the right; words alone without any."""
        x, seen = self.text.token(tokens), known.expand(len(tokens), -1)
        if pixels is not None:
            picture = self.see(pixels)
            x = torch.cat([picture, x], 1)
            seen = torch.cat([seen.new_ones(picture.shape[:2]), seen], 1)
        everything = None if bool(seen.all()) else seen
        return self.text.remember(self.text.encode(x, everything), everything)


def prepare(model: Pali, dtype: torch.dtype | None) -> None:
    """Cast for inference; T5's states, too, are too large for float16."""
    runtime.refuse_float16(dtype)
    if dtype is None:
        stored = model.text.token.weight.dtype
        dtype = torch.float32 if stored == torch.float16 else stored
    model.to(dtype)


KINDS = {"pali": ModelKind(PaliConfig, Pali, prepare, cast_on_read=True)}

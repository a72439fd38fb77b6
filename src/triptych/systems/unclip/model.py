"""DALL-E 2 (unCLIP) as one model: a text tower, a prior, a decoder, upsamplers (arXiv:2204.06125).

The parts and their theory are in `prior.py`, `decoder.py` and `upsampler.py`; this file encodes
texts and pictures for them.

Dimensions: B pictures, E width of embeddings, T tokens of the text, S width of their states, C
channels, H height, W width.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.diffusion.denoiser import Conditioning
from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.system import ModelKind
from triptych.systems.clip.model import TextConfig, TextTransformer, VisionTransformer, VitConfig
from triptych.systems.unclip.autoregressive import AutoregressiveConfig, AutoregressivePrior
from triptych.systems.unclip.decoder import Decoder, DecoderConfig
from triptych.systems.unclip.embeddings import PrincipalComponents
from triptych.systems.unclip.prior import DiffusionPrior, PriorConfig
from triptych.systems.unclip.upsampler import Upsampler, UpsamplerConfig

VIT_L_TEXT = TextConfig(width=768, heads=12, hidden=3072, activation="quick_gelu")
"""The text tower of OpenAI's ViT-L/14."""


@dataclass(frozen=True)
@bounded
class UnclipConfig:
    """Configuration of the parts; the defaults are Karlo's."""

    dim: int = 768
    """Width of the embeddings of pictures and texts."""
    text: TextConfig = VIT_L_TEXT
    image: VitConfig | None = None
    """The image tower, which variations of a picture need."""
    unit: bool = False
    """Embeddings have unit length, as in CLIP's own comparison; Karlo's do not."""
    prior: PriorConfig | None = field(default_factory=PriorConfig)
    """None in the form for variations of a picture."""
    autoregressive: AutoregressiveConfig | None = None
    """A second prior, which may be chosen in place of the first."""
    components: int = 0
    """Principal components of the embeddings that are kept; 0 for none."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    upsamplers: tuple[UpsamplerConfig, ...] = (UpsamplerConfig(last=True),)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "dim")
        if self.components > self.dim:
            raise ValueError(
                f"embeddings of {self.dim} numbers have at most as many components, not "
                f"{self.components}"
            )
        for name, part in (
            ("the decoder", self.decoder),
            ("the prior", self.prior),
            ("the autoregressive prior", self.autoregressive),
        ):
            if part and (part.dim, part.states) != (self.dim, self.text.width):
                raise ValueError(
                    f"{name} reads embeddings of {part.dim} numbers and states of {part.states}, "
                    f"the text tower has {self.dim} and {self.text.width}: they are of different "
                    "CLIPs"
                )
        side = self.decoder.size
        for upsampler in self.upsamplers:
            if upsampler.small != side:
                raise ValueError(
                    f"an upsampler reads pictures of {upsampler.small} pixels, and those before it "
                    f"have {side}"
                )
            side = upsampler.size

    @property
    def size(self) -> int:
        """Side of the final pictures in pixels."""
        return self.upsamplers[-1].size if self.upsamplers else self.decoder.size


class Unclip(nn.Module):
    """The parts, and what they need of CLIP."""

    def __init__(self, config: UnclipConfig):
        super().__init__()
        self.config = config
        self.text = TextTransformer(config.text, config.dim)
        self.image = VisionTransformer(config.image, config.dim) if config.image else None
        self.prior = DiffusionPrior(config.prior) if config.prior else None
        self.autoregressive = None
        if config.autoregressive:
            self.autoregressive = AutoregressivePrior(config.autoregressive)
        self.components = None
        if config.components:
            self.components = PrincipalComponents(config.dim, config.components)
        self.decoder = Decoder(config.decoder)
        self.upsamplers = nn.ModuleList(Upsampler(part) for part in config.upsamplers)

    def encode_texts(self, tokens: Int64[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Conditioning:
        """Embedding, states and mask of texts; `mask` is True for their tokens, without padding."""
        return encode_tokens(self.text, tokens, mask, unit=self.config.unit)

    def embed_image(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of pictures from the image tower's transform.

        Raises:
            ValueError: the model has no image tower.
        """
        if self.image is None:
            raise ValueError(
                "this model has no image tower, which reads pictures: use the form for image "
                "variations, or a run that was trained here"
            )
        embedded: Tensor = self.image(pixels)
        return self.finish(embedded)

    def finish(self, vectors: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length, where this model has such ones, in float32."""
        return _finish(vectors, self.config.unit)


def encode_tokens(
    tower: TextTransformer,
    tokens: Int64[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    unit: bool,
) -> Conditioning:
    """Embedding, states and mask of texts by a text tower; `mask` is True for their tokens, without
    padding. `unit` scales the embeddings to length 1.
    """
    states, text = tower.states_and_vector(tokens)
    return {"text": _finish(text, unit), "states": states.float(), "mask": mask}


def _finish(vectors: Tensor, unit: bool) -> Tensor:
    vectors = vectors.float()
    return F.normalize(vectors, dim=-1) if unit else vectors


def prepare(model: Unclip, dtype: torch.dtype | None) -> None:
    """Channels last for U-Nets of Karlo's form: on a Xeon with AMX an upsampler takes 0.72 of the
    time in bfloat16 and 0.98 in float32, a decoder 0.82 and 0.96. Those trained here, which are
    small and resample by convolutions, lose by it (1.1 in bfloat16).
    """
    for network in (model.decoder, *model.upsamplers):
        if network.config.resampling == "residual":  # type: ignore[union-attr]
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


KINDS = {
    "unclip": ModelKind(UnclipConfig, Unclip, prepare),
    "unclip-prior": ModelKind(PriorConfig, DiffusionPrior),
    "unclip-autoregressive": ModelKind(AutoregressiveConfig, AutoregressivePrior),
    "unclip-decoder": ModelKind(DecoderConfig, Decoder),
    "unclip-upsampler": ModelKind(UpsamplerConfig, Upsampler),
}

"""The decoder: from a CLIP embedding of a picture to the picture (arXiv:2204.06125, section 2.1).

The U-Net on pixels, told the embedding in two ways: projected and added to the embedding of the
timestep, and as extra tokens before those of the caption, which attention reads. It predicts noise
and its variance. Either condition may be left out: the embedding is replaced by a learned one, the
caption by the empty text.

Dimensions: B pictures, C channels, H height, W width, E width of embeddings, T tokens of the text,
S width of their states.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.guidance import guide_with_variance
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.objective import learned_variance_loss, training_levels
from triptych.diffusion.samplers import deterministic
from triptych.diffusion.samplers.levels import sampler_levels
from triptych.diffusion.samplers.stochastic import VarianceDenoiser, learned_variance
from triptych.diffusion.sampling import run_sampler
from triptych.diffusion.spacing import Spacing
from triptych.diffusion.steps import Level, Step
from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.nn.loss import Loss
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig
from triptych.systems.unclip.prior import COSINE


@dataclass(frozen=True)
@bounded
class DecoderConfig:
    """Configuration of a decoder; the defaults are Karlo's."""

    dim: int = 768
    """Width of the embeddings of pictures and texts."""
    states: int = 768
    """Width of the states of the text."""
    size: int = 64
    """Side of the pictures in pixels."""
    channels: int = 3
    tokens: int = 4
    """Extra tokens that the image embedding becomes."""
    context: int = 1536
    """Width of the tokens that attention reads."""
    widths: tuple[int, ...] = (320, 640, 960, 1280)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 3
    attention: tuple[int, ...] = (1, 2, 3)
    """Levels with attention, counted from 0."""
    head_width: int = 64
    time_width: int = 1280
    conditioning: Literal["add", "scale_shift"] = "scale_shift"
    resampling: Literal["convolution", "residual"] = "residual"
    patch: int = 1
    groups: int = 32
    dropout: float = 0.0
    predicts: Literal["noise", "velocity"] = "noise"
    """What the network predicts beside the variance."""
    embedding_scale: float = 1.0
    """Embeddings are multiplied by it before they are projected; the root of `dim` gives those of
    unit length numbers of unit size.
    """
    steps: int = 25
    """Default of `generate`, as are sampler and guidance."""
    sampler: str = "ddpm"
    guidance: float = 8.0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "dim", "states", "size", "channels", "tokens", "context", "steps")
        require_at_least(self, 0, "guidance", "embedding_scale")

    @property
    def unet(self) -> UNetConfig:
        """The U-Net; its output is noise and variance."""
        return UNetConfig(
            self.channels,
            2 * self.channels,
            self.widths,
            self.blocks,
            self.attention,
            self.head_width,
            self.time_width,
            conditioning=self.conditioning,
            context=self.context,
            resampling=self.resampling,
            patch=self.patch,
            groups=self.groups,
            dropout=self.dropout,
        )


class Decoder(nn.Module):
    """A U-Net, and the projections of image embedding and text to what it reads."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.image_proj = nn.Linear(config.dim, config.time_width)
        self.text_proj = nn.Linear(config.dim, config.time_width)
        self.token_proj = nn.Linear(config.dim, config.tokens * config.context)
        self.state_proj = nn.Linear(config.states, config.context)
        self.state_norm = nn.LayerNorm(config.context)
        self.null_image = nn.Parameter(torch.zeros(config.dim))

    def encode_condition(
        self,
        image: Float[Tensor, "B E"] | None,
        text: Float[Tensor, "B E"],
        states: Float[Tensor, "B T S"],
        mask: Bool[Tensor, "B T"],
        dropped: Bool[Tensor, " B"] | None = None,
    ) -> Conditioning:
        """What the U-Net reads. Without an image embedding (None, or `dropped`) the learned one
        replaces it. `mask` is True for the tokens of the text.
        """
        scale = self.config.embedding_scale
        null, text = self.null_image.expand(len(text), -1), text * scale
        if image is None:
            image = null
        elif dropped is None:
            image = image * scale
        else:
            image = null.where(dropped[:, None], image * scale)
        image = image.to(text.dtype)
        # channel by channel: each number of a token is beside the same number of the next token
        extra = self.token_proj(image).unflatten(1, (-1, self.config.tokens)).transpose(1, 2)
        context = torch.cat([extra, self.state_norm(self.state_proj(states))], dim=1)
        return {
            "added": self.image_proj(image) + self.text_proj(text),
            "context": context,
            "mask": nn.functional.pad(mask, (self.config.tokens, 0), value=True),
        }

    def predict(
        self, x: Float[Tensor, "B C H W"], time: Float[Tensor, " B"], cond: Conditioning
    ) -> Float[Tensor, "B C2 H W"]:
        """Noise or velocity, and variance, one after the other along the channels."""
        predicted: Tensor = self.unet(
            x, time, added=cond["added"], context=cond["context"], mask=cond["mask"]
        )
        return predicted


def objective(
    model: Decoder,
    picture: Float[Tensor, "B C H W"],
    cond: Conditioning,
    *,
    noisiest: float = 1.0,
    noise: Float[Tensor, "B C H W"] | None = None,
    time: Float[Tensor, " B"] | None = None,
) -> Loss:
    """The loss of prediction and variance at random timesteps. Terms: `mse`, and `bound` in nats
    per number.

    `noisiest` is as in `learned_variance_loss`. Noise and timesteps are drawn unless they are
    given.
    """
    if time is None:
        time = training_levels(COSINE, len(picture), picture.device).time
    noise = torch.randn_like(picture) if noise is None else noise

    def predict(x: Tensor, time: Tensor) -> Tensor:
        return model.predict(x, time, cond)

    return learned_variance_loss(
        predict,
        COSINE,
        picture,
        noise,
        time.long(),
        predicts=model.config.predicts,
        noisiest=noisiest,
    )


def sampling_levels(config: DecoderConfig, steps: int = 0, sampler: str = "") -> list[Level]:
    """The noise levels of the steps of `sample`: whole timesteps, evenly from the last to 0."""
    chosen = Spacing("linspace", whole_times=True)
    return sampler_levels(COSINE, sampler or config.sampler, steps or config.steps, chosen)


def sample(
    model: Decoder,
    cond: Conditioning,
    uncond: Conditioning,
    noise: PictureNoise,
    *,
    steps: int = 0,
    guidance: float | None = None,
    sampler: str = "",
    eta: float | None = None,
    start: Float[Tensor, "B C H W"] | None = None,
) -> Iterator[Step]:
    """Pictures of these conditions, step by step; the last step's x is in [-1, 1].

    The sampler `ddpm` adds noise of the variance that the network predicts; others do not read it.
    `start` replaces the noise that is drawn. Defaults are the configuration's.
    """
    config = model.config
    sampler = sampler or config.sampler
    levels = sampling_levels(config, steps, sampler)
    if start is None:
        start = noise.start((config.channels, config.size, config.size))
    x = levels[0].sigma * start.to(model.null_image.device)
    guided = denoiser(model, cond, uncond, guidance)
    if sampler == "ddpm" and eta is None:
        return learned_variance(guided, x, levels, noise.match(x))
    return run_sampler(sampler, lambda x, at: guided(x, at)[0], x, levels, noise, eta=eta)


def invert(
    model: Decoder,
    picture: Float[Tensor, "B C H W"],
    cond: Conditioning,
    *,
    steps: int = 0,
) -> Float[Tensor, "B C H W"]:
    """The noise from which DDIM without guidance draws these pictures (arXiv:2010.02502, 4.3).

    The picture is taken as a sample at the cleanest timestep, which has a little noise. Each step
    evaluates the network once, a step early: solved by iteration, steps that more than double the
    noise, as the first ones do here, diverge.
    """
    levels = sampling_levels(model.config, steps, "ddim")[:-1]
    plain = denoiser(model, cond, cond, 1.0)
    x = picture
    for step in deterministic.invert(lambda x, at: plain(x, at)[0], x, levels, 1):
        x = step.x
    return x / levels[0].sigma


def cut_padding(*conditions: Conditioning) -> list[Conditioning]:
    """Conditions without the tokens that are padding in all of them, which nothing attends to."""
    seen = torch.cat([cond["mask"] for cond in conditions]).any(0)
    most = int(seen.sum()) if seen.device.type == "cpu" else len(seen)
    return [
        {
            "added": cond["added"],
            "context": cond["context"][:, :most],
            "mask": cond["mask"][:, :most],
        }
        for cond in conditions
    ]


def denoiser(
    model: Decoder, cond: Conditioning, uncond: Conditioning, guidance: float | None
) -> VarianceDenoiser:
    """x0, guided and in [-1, 1], and the variance that the network predicts."""
    scale = model.config.guidance if guidance is None else guidance
    kind = model.config.predicts
    guided = guide_with_variance(model.predict, COSINE, cond, uncond, scale, kind)

    def clamped(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        x0, variance = guided(x, level)
        return x0.clamp(-1, 1), variance

    return clamped

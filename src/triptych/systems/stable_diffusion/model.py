"""Latent diffusion from text (Rombach et al. arXiv:2112.10752; SDXL: arXiv:2307.01952).

Text towers encode the prompt, a U-Net denoises latents, and an autoencoder converts between
pictures and latents. Schedules and samplers are in `diffusion/`. Stable Diffusion 1.x, 2.x, XL and
small models that are trained from scratch differ only in their configuration.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides, T tokens
of a text, D width of the context, V numbers of the pooled vector, N sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.diffusion.denoiser import (
    Conditioning,
    Predicts,
    conditional_denoiser,
    consistency,
    parameterisation,
)
from triptych.diffusion.guidance import Composition, rescale_guidance, threshold_x0
from triptych.diffusion.names import find_sampler
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.objective import matching, offset_noise, training_levels
from triptych.diffusion.samplers.conventions import Spread, diffusers_levels, diffusers_spacing
from triptych.diffusion.samplers.deterministic import Ending
from triptych.diffusion.sampling import Limit, limited, run_sampler
from triptych.diffusion.schedule import Discrete, Flow, Levels, Schedule, betas, zero_terminal
from triptych.diffusion.spacing import Kind
from triptych.diffusion.steps import Denoiser, Level, Step
from triptych.fields import bounded
from triptych.nn.loss import Loss
from triptych.nn.tiles import pad_to_multiple
from triptych.system import ModelKind
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.systems.clip.model import TextConfig, TextEncoderConfig, TextTransformer
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig


@dataclass(frozen=True)
@bounded
class ScheduleConfig:
    """How noise is added and what the U-Net predicts; the defaults are Stable Diffusion 1.x."""

    kind: Literal["linear", "scaled_linear", "cosine", "sigmoid", "flow"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    times: int = 1000
    """Number of training timesteps; not used by "flow"."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that the last timestep is pure noise (arXiv:2305.08891)."""
    shift: float = 1.0
    """Shift of the timesteps of "flow" towards noise."""
    predicts: Predicts = "noise"

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.kind == "flow":
            raise ValueError("zero_terminal_snr is for schedules with betas, not for flow")

    def schedule(self) -> Schedule:
        """The schedule with these settings."""
        if self.kind == "flow":
            return Flow(self.shift)
        table = betas(self.kind, self.beta_start, self.beta_end, self.times)
        return Discrete(tuple(zero_terminal(table) if self.zero_terminal_snr else table))


@dataclass(frozen=True)
@bounded
class SamplingConfig:
    """Defaults of sampling, for what a request leaves open; those of Stable Diffusion 1.x."""

    sampler: str = "plms"
    steps: int = 50
    spacing: Kind = "leading"
    offset: int = 1
    """Added to the timesteps of `leading` spacing."""
    end: Literal["clean", "least"] = "least"
    """Where DDIM and PLMS end: at x0, or at the smallest noise of the schedule."""
    guidance: float = 7.5
    rescale: float = 0.0
    height: int = 512
    width: int = 512
    zeros_for_empty: bool = False
    """Encode an empty negative prompt as zeros, as SDXL does."""
    between: Literal["", "leading", "trailing"] = ""
    """Where `spacing` is over sigma: the timestep spacing whose first and last level Euler and its
    kin stay between. Empty is the whole schedule.
    """
    final: Literal["clean", "least"] = "clean"
    """Where Euler, DPM-Solver and UniPC end: at x0, or at the smallest noise of the schedule."""
    ending: Ending = "few"
    """When the last step of a multistep solver is of first order even if it ends above sigma 0:
    below 15 steps, always or never.
    """
    clip: float = 0.0
    """Of DDIM, DDPM, Heun and LCM: clamp x0 to this range around 0; 0 does not."""
    threshold: float = 0.0
    """Of DDIM, DDPM, LCM and solvers: the quantile of dynamic thresholding of x0; 0 has none."""
    threshold_most: float = 1.0
    """The largest value that this quantile is taken for."""

    def __post_init__(self) -> None:
        if self.clip < 0 or not 0 <= self.threshold <= 1 or self.threshold_most < 1:
            raise ValueError(
                "clip is at least 0, threshold a share, 0 to 1, and threshold_most at least 1, not "
                f"{self.clip}, {self.threshold} and {self.threshold_most}"
            )


CLIP_L = TextEncoderConfig(
    TextConfig(width=768, layers=12, heads=12, hidden=3072, activation="quick_gelu")
)
"""OpenAI's ViT-L/14: the tower of 1.x and, read before its last block, the first one of XL."""


@dataclass(frozen=True)
@bounded
class StableDiffusionConfig:
    """The parts of a text-to-image model; the defaults are Stable Diffusion 1.x.

    Exactly one of `autoencoder`, `tiny` and `patch` is set; it defines the latents.
    """

    unet: LatentUNetConfig = field(default_factory=LatentUNetConfig)
    text: tuple[TextEncoderConfig, ...] = (CLIP_L,)
    """Towers whose states are concatenated; the last one gives the pooled vector."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    autoencoder: AutoencoderConfig | None = field(default_factory=AutoencoderConfig)
    tiny: TinyAutoencoderConfig | None = None
    patch: int = 0
    """Without an autoencoder: latents are patches of pixels with this side."""
    dropped: float = 0.1
    """Probability of dropping the text in training; with 0 there is no guidance."""

    def __post_init__(self) -> None:
        if (self.autoencoder is not None) + (self.tiny is not None) + (self.patch > 0) != 1:
            raise ValueError("set exactly one of autoencoder, tiny and patch")
        if not self.text:
            raise ValueError("a text-to-image model needs at least one text tower")
        width = sum(tower.text.width for tower in self.text)
        if width != self.unet.context:
            raise ValueError(
                f"the text towers have width {width} together, but the U-Net reads a context of "
                f"width {self.unet.context}"
            )
        if self.unet.added and self.text[-1].dim is None:
            raise ValueError(
                "the U-Net reads a pooled vector: the last text tower needs a projection (dim)"
            )

    @property
    def factor(self) -> int:
        """Downsampling of height and width from pixels to latents."""
        kind = self.autoencoder or self.tiny
        return self.patch if kind is None else kind.factor

    @property
    def sizes(self) -> int:
        """Numbers of the size conditioning: 6 in SDXL, 5 in its refiner, else 0."""
        return self.unet.sizes(self.text[-1].dim or 0) if self.unet.added else 0

    @property
    def channels(self) -> int:
        """Channels of a picture."""
        kind = self.autoencoder or self.tiny
        return self.unet.out_channels // self.patch**2 if kind is None else kind.channels

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(Z, h, w) of a picture of any size; sides are rounded up to multiples of `factor`."""
        return self.unet.out_channels, -(-height // self.factor), -(-width // self.factor)


class Patches(nn.Module):
    """Pixels as latents, without loss: patches become channels."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def encode(
        self, image: Float[Tensor, "B C H W"], *, tile: int | None = None
    ) -> Float[Tensor, "B Z h w"]:
        """Latents of a picture, padded with its last column and row to multiples of the side."""
        return F.pixel_unshuffle(pad_to_multiple(image, self.side), self.side)

    def decode(
        self,
        latents: Float[Tensor, "B Z h w"],
        size: tuple[int, int] | None = None,
        *,
        tile: int | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """The picture, of this height and width."""
        image = F.pixel_shuffle(latents, self.side)
        height, width = size or image.shape[2:]
        return image[:, :, :height, :width]


class StableDiffusion(nn.Module):
    """Text towers, U-Net, autoencoder and schedule."""

    def __init__(self, config: StableDiffusionConfig):
        super().__init__()
        self.config = config
        self.schedule = config.schedule.schedule()
        self.parameterisation = parameterisation(config.schedule.predicts, self.schedule)
        self.text = nn.ModuleList(TextTransformer(t.text, t.dim) for t in config.text)
        self.unet = LatentUNet(config.unet)
        self.autoencoder: Autoencoder | TinyAutoencoder | Patches = (
            Autoencoder(config.autoencoder)
            if config.autoencoder is not None
            else TinyAutoencoder(config.tiny)
            if config.tiny is not None
            else Patches(config.patch)
        )

    def encode_text(
        self, tokens: Sequence[Int64[Tensor, "B T"]], *, skip: int | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B V"] | None]:
        """The states of every token, and the pooled vector if the U-Net reads one.

        `tokens` has one tensor of complete windows per tower. `skip` blocks at the end of each
        tower are not used; None is the number that the model was trained with.

        Raises:
            ValueError: there is another number of towers, or a tower has fewer blocks.
        """
        if len(tokens) != len(self.text):
            raise ValueError(f"{len(tokens)} tensors of tokens for {len(self.text)} text towers")
        states, vector = [], None
        for tower, config, ids in zip(self.text, self.config.text, tokens, strict=True):
            state, vector = tower.states_and_vector(  # type: ignore[operator]
                ids,
                skip=config.skip if skip is None else skip,
                norm=config.norm,
                projected=config.dim is not None,
            )
            states.append(state)
        return torch.cat(states, dim=-1), vector if self.config.unet.added else None

    def predict(
        self, x: Float[Tensor, "B Z h w"], time: Float[Tensor, " B"], cond: Conditioning
    ) -> Float[Tensor, "B Z h w"]:
        """The output of the U-Net.

        `cond` has `context` (B, T, D) and, where the configuration has them, `vector` (B, V),
        `sizes` (B, N) and `label` (B,); `beside` (B, C, h, w) is concatenated to `x`.
        """
        if "beside" in cond:
            x = torch.cat([x, cond["beside"].to(x.dtype)], dim=1)
        prediction: Tensor = self.unet(
            x,
            time,
            cond["context"],
            vector=cond.get("vector"),
            sizes=cond.get("sizes"),
            label=cond.get("label"),
        )
        return prediction

    def denoiser(
        self,
        cond: Conditioning | Composition,
        uncond: Conditioning,
        guidance: float,
        rescale: float = 0.0,
    ) -> Denoiser:
        """The denoiser for samplers, with classifier-free guidance.

        Raises:
            ValueError: guidance is not 1, or the prompt is composed, but the text was never dropped
                in training.
        """
        composed = not isinstance(cond, dict)
        if (guidance != 1 or composed) and not self.config.dropped:
            raise ValueError(
                "this model was trained without dropping its text (drop 0), so it has no "
                f"guidance: guidance must be 1, not {guidance}, and prompts have no AND or weight"
            )
        denoise = conditional_denoiser(self.predict, self.schedule, self.config.schedule.predicts)
        return rescale_guidance(denoise, cond, uncond, guidance, rescale, self.parameterisation)


def objective(
    model: StableDiffusion,
    latents: Float[Tensor, "B Z h w"],
    cond: Conditioning,
    *,
    min_snr: float | None = None,
    loss_space: Predicts | None = None,
    offset: float = 0.0,
    noise: Float[Tensor, "B Z h w"] | None = None,
    at: Levels | None = None,
) -> Loss:
    """The training loss of scaled latents at random noise levels.

    Where the text is dropped, `cond` must already encode an empty text. `noise` and the levels `at`
    are drawn unless given. `min_snr` and `loss_space` weight levels, as in `matching`. Term: `mse`,
    the squared error of `loss_space`, by default of what the U-Net predicts.
    """
    at = at or training_levels(model.schedule, len(latents), latents.device)
    noise = offset_noise(torch.randn_like(latents), offset) if noise is None else noise
    return matching(
        lambda x, time: model.predict(x, time, cond),
        model.parameterisation,
        latents,
        noise,
        at,
        min_snr=min_snr,
        loss_space=parameterisation(loss_space, model.schedule) if loss_space else None,
    )


def sample(
    model: StableDiffusion,
    cond: Conditioning,
    uncond: Conditioning,
    noise: PictureNoise,
    *,
    sampler: str = "",
    steps: int = 0,
    spacing: Kind | None = None,
    guidance: float | None = None,
) -> Iterator[Step]:
    """Sample latents step by step; decode the x of the last step.

    Arguments that are left out have the configuration's defaults. The model must be in evaluation
    mode.
    """
    config = model.config.sampling
    levels, scale = sampling_levels(model, sampler, steps, spacing)
    shape = model.config.latent_shape(config.height, config.width)
    x = (scale * noise.start(shape)).to(cond["context"].device)
    guidance = config.guidance if guidance is None else guidance
    denoise = model.denoiser(cond, uncond, guidance, config.rescale)
    return run_as_diffusers(model, sampler or config.sampler, denoise, x, levels, noise)


def sampling_levels(
    model: StableDiffusion, sampler: str = "", steps: int = 0, spacing: Kind | None = None
) -> tuple[list[Level], float]:
    """The noise levels of the steps, as in diffusers, and the scale of the initial noise.

    Arguments that are left out have the configuration's defaults.

    Raises:
        ValueError: the schedule has no such spacing, or fewer steps.
    """
    config = model.config.sampling
    sampler = sampler or config.sampler
    kind = spacing or default_spacing(model, sampler)
    between = config.between if kind == config.spacing else ""
    spread = Spread(kind, config.offset, between, config.end, config.final)
    return diffusers_levels(model.schedule, sampler, steps or config.steps, spread)


def default_spacing(model: StableDiffusion, sampler: str) -> Kind:
    """The spacing of a sampler where a request leaves it open: the configuration's, or the only one
    that the sampler has in diffusers.
    """
    return diffusers_spacing(model.schedule, sampler, model.config.sampling.spacing)


def run_as_diffusers(
    model: StableDiffusion,
    sampler: str,
    denoise: Denoiser,
    x: Float[Tensor, "B Z h w"],
    levels: Sequence[Level],
    noise: PictureNoise,
) -> Iterator[Step]:
    """The steps of a sampler over the levels, with what the configuration asks of its steps."""
    config, reads = model.config.sampling, find_sampler(sampler).reads
    limit: Limit | None = None
    if config.threshold and "threshold" in reads:
        limit = partial(threshold_x0, share=config.threshold, most=config.threshold_most)
    elif config.clip and "clip" in reads:
        limit = partial(torch.clamp, min=-config.clip, max=config.clip)
    if sampler == "lcm" and isinstance(model.schedule, Discrete):
        denoise, limit = consistency(limited(denoise, limit)), None
    return run_sampler(sampler, denoise, x, levels, noise, limit=limit, ending=config.ending)


def prepare(model: StableDiffusion, dtype: torch.dtype | None) -> None:
    """Channels last, the order that convolutions compute in: on a Zen 5 a step takes 0.90 of the
    time in bfloat16 and 0.93 in float32, decoding 0.78 and 0.83 (docs/results.md).
    """
    for network in (model.unet, model.autoencoder):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


KINDS = {
    "stable-diffusion": ModelKind(
        StableDiffusionConfig, StableDiffusion, prepare, cast_on_read=True
    )
}

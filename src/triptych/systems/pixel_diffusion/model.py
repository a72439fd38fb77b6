"""Class-conditional diffusion on pixels (Ho et al. arXiv:2006.11239; guidance arXiv:2207.12598).

A U-Net learns to denoise pictures of a condition; sampling starts from noise and denoises it step
by step. Schedules, losses and samplers are in `diffusion/`, the network in `unet.py`; this file
encodes the condition and puts them together.

Dimensions: B pictures, C channels, H height, W width, N numbers of a condition.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import runtime
from triptych.diffusion.denoiser import (
    Conditioning,
    Predicts,
    conditional_denoiser,
    parameterisation,
)
from triptych.diffusion.guidance import clip_x0, rescale_guidance
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.objective import matching, offset_noise, training_levels
from triptych.diffusion.samplers.levels import sampler_levels
from triptych.diffusion.sampling import run_sampler
from triptych.diffusion.schedule import Discrete, Edm, Flow, Levels, Schedule, betas, zero_terminal
from triptych.diffusion.spacing import Kind, Spacing
from triptych.diffusion.steps import Denoiser, Level, Step
from triptych.fields import bounded
from triptych.nn.conditions import condition_vector
from triptych.nn.loss import Loss
from triptych.system import ModelKind
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig

SIGMA_SPACINGS = (
    "karras", "exponential", "lu", "polyexponential", "beta_sigma", "kl_optimal",
)  # fmt: skip
Condition = Tensor | None
"""None, int64 (B,) class labels, or float (B, N) attributes or numbers."""


@dataclass(frozen=True)
@bounded
class PixelDiffusionConfig:
    """Configuration of a pixel diffusion model."""

    height: int
    width: int
    channels: int
    condition: Literal["none", "label", "attributes", "vector"]
    condition_size: int = 0
    """Classes, attributes or numbers."""
    widths: tuple[int, ...] = (64, 128, 128)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks of a level."""
    attention: tuple[int, ...] = (2,)
    """Levels with self-attention, counted from 0."""
    head_width: int = 32
    time_width: int = 256
    conditioning: Literal["add", "scale_shift"] = "scale_shift"
    """How a block uses time and condition: added, or as scale and shift of its normalisation."""
    patch: int = 1
    """Side of the squares of pixels that become channels of one position of the U-Net."""
    groups: int = 16
    dropout: float = 0.0
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow"] = "flow"
    zero_terminal_snr: bool = False
    """Stretch a table of betas to end in pure noise (arXiv:2305.08891)."""
    shift: float = 1.0
    """Shift of a flow's time towards noise; 1 is none."""
    predicts: Predicts = "flow"
    sampler: str = "dpmpp_2m"
    """Default of `generate`, as are steps, guidance and spacing."""
    steps: int = 20
    guidance: float = 2.0
    spacing: Kind = "trailing"
    dropped: float = 0.1
    """Share of training pictures without their condition; 0 forbids guidance."""
    clip: bool = True
    """Clamp x0 to [-1, 1] at every step."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1:
            raise ValueError(
                "height, width and channels must be at least 1, not "
                f"{self.height} x {self.width} x {self.channels}"
            )
        if self.condition != "none" and self.condition_size < 1:
            raise ValueError(
                f"condition {self.condition!r} needs condition_size, at least 1, not "
                f"{self.condition_size}"
            )
        if self.zero_terminal_snr and self.schedule in ("edm", "flow"):
            raise ValueError(
                f"zero_terminal_snr is for schedules of betas, not for {self.schedule}"
            )
        if (self.schedule == "edm") != (self.predicts == "edm"):
            raise ValueError("schedule edm and predicts edm go together: give both or neither")
        if self.schedule == "edm" and self.spacing not in SIGMA_SPACINGS:
            raise ValueError(
                f"an EDM schedule needs a spacing over sigma ({', '.join(SIGMA_SPACINGS)}), not "
                f"{self.spacing}"
            )


def build_schedule(config: PixelDiffusionConfig) -> Schedule:
    """The noise schedule of a configuration."""
    if config.schedule == "edm":
        return Edm()
    if config.schedule == "flow":
        return Flow(config.shift)
    table = betas(config.schedule)
    return Discrete(tuple(zero_terminal(table) if config.zero_terminal_snr else table))


class PixelDiffusion(nn.Module):
    """A U-Net conditioned on time and, if there is one, a condition; with its noise schedule."""

    def __init__(self, config: PixelDiffusionConfig):
        super().__init__()
        self.config = config
        self.schedule = build_schedule(config)
        self.kind = parameterisation(config.predicts, self.schedule)
        # one number more than the condition: 1 where it is left out
        self.vector_size = config.condition_size + 1 if config.condition != "none" else 0
        self.unet = UNet(
            UNetConfig(
                config.channels,
                config.channels,
                config.widths,
                config.blocks,
                config.attention,
                config.head_width,
                config.time_width,
                vector=self.vector_size,
                conditioning=config.conditioning,
                patch=config.patch,
                groups=config.groups,
                dropout=config.dropout,
            )
        )

    def encode_condition(
        self, condition: Condition, count: int, dropped: Bool[Tensor, " B"] | None = None
    ) -> Conditioning:
        """The network's conditioning: {"vector": (B, N + 1)}, or {} of an unconditional model.

        The last number is 1, and the others 0, without a condition (None, or `dropped`): the
        network learns both cases, for guidance.

        Raises:
            ValueError: the condition is not of the model's kind or shape.
        """
        kind, size = self.config.condition, self.config.condition_size
        weight = self.unet.conv_in.weight
        if kind == "none":
            condition_vector(kind, size, condition, count, weight)
            return {}
        absent = F.one_hot(weight.new_full((count,), size).long()).to(weight)
        if condition is None:
            return {"vector": absent}
        vector = condition_vector(kind, size, condition, count, weight)
        vector = F.pad(vector, (0, 1))  # (B, N + 1)
        if dropped is not None:
            vector = vector.where(~dropped[:, None], absent)
        return {"vector": vector}

    def predict(
        self, x: Float[Tensor, "B C H W"], time: Float[Tensor, " B"], cond: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The network's output, of the kind `config.predicts`."""
        prediction: Tensor = self.unet(x, time, cond.get("vector"))
        return prediction

    def denoiser(
        self,
        condition: Condition,
        count: int,
        guidance: float = 1.0,
        rescale: float = 0.0,
        steer: Callable[[Denoiser], Denoiser] | None = None,
    ) -> Denoiser:
        """The expected picture in [-1, 1], guided towards the condition; `steer` wraps the guided
        denoiser, before x0 is clamped.

        Raises:
            ValueError: guidance of a model that was never trained without its condition.
        """
        denoise = conditional_denoiser(self.predict, self.schedule, self.config.predicts)
        cond = self.encode_condition(condition, count)
        if condition is None:  # nothing to guide towards
            guidance = 1.0
        if guidance != 1 and not self.config.dropped:
            raise ValueError(
                "this model was never trained without its condition (drop 0), which guidance "
                f"needs: guidance must be 1, not {guidance}"
            )
        guided = rescale_guidance(
            denoise, cond, self.encode_condition(None, count), guidance, rescale, self.kind
        )
        steered = steer(guided) if steer else guided
        return clip_x0(steered) if self.config.clip else steered


def objective(
    model: PixelDiffusion,
    image: Float[Tensor, "B C H W"],
    condition: Condition,
    *,
    drop: float = 0.1,
    min_snr: float | None = None,
    offset: float = 0.0,
    noise: Float[Tensor, "B C H W"] | None = None,
    at: Levels | None = None,
) -> Loss:
    """The matching loss at random noise levels, with the condition left out at the rate `drop`.

    Noise and levels (`at`) are drawn unless they are given. Term: `mse`, of the network's output.
    """
    count, device = len(image), image.device
    dropped = torch.rand(count, device=device) < drop if drop and condition is not None else None
    cond = model.encode_condition(condition, count, dropped)
    at = at or training_levels(model.schedule, count, device)
    noise = offset_noise(torch.randn_like(image), offset) if noise is None else noise
    return matching(
        lambda x, time: model.predict(x, time, cond), model.kind, image, noise, at, min_snr=min_snr
    )


def sample(
    model: PixelDiffusion,
    condition: Condition,
    noise: PictureNoise,
    *,
    sampler: str = "",
    steps: int = 0,
    spacing: Kind | None = None,
    guidance: float | None = None,
    rescale: float = 0.0,
    eta: float | None = None,
    steer: Callable[[Denoiser], Denoiser] | None = None,
) -> Iterator[Step]:
    """Pictures of these conditions, step by step; the last step's x is in [-1, 1].

    Defaults are the configuration's. Put the model into evaluation mode first.
    """
    config = model.config
    sampler = sampler or config.sampler
    levels = sampling_levels(model, steps, spacing, sampler, eta)
    start = noise.start((config.channels, config.height, config.width))
    x = (levels[0].sigma * start).to(next(model.parameters()).device)
    denoise = model.denoiser(
        condition, len(x), config.guidance if guidance is None else guidance, rescale, steer
    )
    return run_sampler(sampler, denoise, x, levels, noise, eta=eta)


def sampling_levels(
    model: PixelDiffusion,
    steps: int = 0,
    spacing: Kind | None = None,
    sampler: str = "",
    eta: float | None = None,
) -> list[Level]:
    """The noise levels of the steps of `sample`."""
    config = model.config
    chosen = Spacing(spacing or config.spacing, whole_times=config.schedule not in ("edm", "flow"))
    sampler, steps = sampler or config.sampler, steps or config.steps
    return sampler_levels(model.schedule, sampler, steps, chosen, eta=eta)


def prepare(model: PixelDiffusion, dtype: torch.dtype | None) -> None:
    """Channels last where inference is in float32: a U-Net on a CPU with AVX2 takes 0.76 of the
    time, on a Zen 5 0.93. In bfloat16 small ones lose more in their norms than convolutions gain
    (1.15), and training gains nothing by it.
    """
    device = next(model.parameters()).device
    if runtime.precision("auto", device) == "float32":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


KINDS = {"pixel-diffusion": ModelKind(PixelDiffusionConfig, PixelDiffusion, prepare)}

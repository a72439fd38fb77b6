"""Class-conditional diffusion on pixels (Ho et al. arXiv:2006.11239; guidance arXiv:2207.12598).

A U-Net learns what a noisy picture of a condition was; sampling starts from noise and asks it again
and again. The theory is in `diffusion/`, the network in `models/unet.py`; this file says what the
network is told and ties them together.

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
from triptych.diffusion.guidance import clipped, rescaled
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.objective import matching, offset_noise, training_levels
from triptych.diffusion.samplers import Denoiser, Level, Step
from triptych.diffusion.sampling import sample as draw
from triptych.diffusion.schedule import Discrete, Edm, Flow, Levels, Schedule, betas, zero_terminal
from triptych.diffusion.spacing import Kind, Spacing
from triptych.diffusion.walks import walk
from triptych.nn.loss import Loss
from triptych.system import ModelKind
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig

OVER_SIGMA = ("karras", "exponential", "polyexponential", "beta_sigma")
Condition = Tensor | None
"""None, int64 (B,) class labels, or float (B, N) attributes or numbers."""


@dataclass(frozen=True)
class PixelDiffusionConfig:
    """Size and kind of a pixel diffusion model."""

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
    """How time and condition reach a block: added, or as scale and shift of its normalisation."""
    patch: int = 1
    """Squares of so many pixels a side become one place of the U-Net."""
    groups: int = 16
    dropout: float = 0.0
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow"] = "flow"
    zero_terminal_snr: bool = False
    """Stretch a table of betas to end in pure noise (arXiv:2305.08891)."""
    shift: float = 1.0
    """Of a flow's time, towards noise."""
    predicts: Predicts = "flow"
    sampler: str = "dpmpp_2m"
    """What `generate` uses where nothing else is asked for, and so with the next four."""
    steps: int = 20
    guidance: float = 2.0
    spacing: Kind = "trailing"
    dropped: float = 0.1
    """How often the condition was left out in training; 0 forbids guidance."""
    clip: bool = True
    """Keep x0 in [-1, 1] at every step."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1:
            raise ValueError(
                f"pictures need a size: {self.height} x {self.width} x {self.channels}"
            )
        if self.condition != "none" and self.condition_size < 1:
            raise ValueError(
                f"condition {self.condition!r} needs condition_size, at least 1, not "
                f"{self.condition_size}"
            )
        if self.zero_terminal_snr and self.schedule in ("edm", "flow"):
            raise ValueError(f"zero_terminal_snr is for tables of betas, not for {self.schedule}")
        if (self.schedule == "edm") != (self.predicts == "edm"):
            raise ValueError("an EDM schedule and EDM's prediction go together")
        if self.schedule == "edm" and self.spacing not in OVER_SIGMA:
            raise ValueError(
                f"an EDM schedule is walked over sigma: spacing {', '.join(OVER_SIGMA)}, not "
                f"{self.spacing}"
            )


def schedule_of(config: PixelDiffusionConfig) -> Schedule:
    """The noise schedule that a configuration names."""
    if config.schedule == "edm":
        return Edm()
    if config.schedule == "flow":
        return Flow(config.shift)
    table = betas(config.schedule)
    return Discrete(tuple(zero_terminal(table) if config.zero_terminal_snr else table))


class PixelDiffusion(nn.Module):
    """A U-Net that is told the time and the condition, with its schedule."""

    def __init__(self, config: PixelDiffusionConfig):
        super().__init__()
        self.config = config
        self.schedule = schedule_of(config)
        self.kind = parameterisation(config.predicts, self.schedule)
        self.told = config.condition_size + 1 if config.condition != "none" else 0
        self.unet = UNet(
            UNetConfig(
                config.channels,
                config.channels,
                config.widths,
                config.blocks,
                config.attention,
                config.head_width,
                config.time_width,
                vector=self.told,
                conditioning=config.conditioning,
                patch=config.patch,
                groups=config.groups,
                dropout=config.dropout,
            )
        )

    def tell(
        self, condition: Condition, count: int, dropped: Bool[Tensor, " B"] | None = None
    ) -> Conditioning:
        """The condition as the network is told it: {"vector": (B, N + 1)}, or nothing at all.

        One-hot for a label. The last number is 1 where nothing is told (`condition` None, or
        `dropped`): the network learns both at once, for guidance.

        Raises:
            ValueError: the condition has another shape than the model's.
        """
        config = self.config
        device = self.unet.conv_in.weight
        if not self.told:
            if condition is not None:
                raise ValueError("a condition was given to a model that takes none")
            return {}
        if condition is None:
            return {"vector": F.one_hot(device.new_full((count,), self.told - 1).long()).to(device)}
        if config.condition == "label":
            condition = F.one_hot(condition, config.condition_size)
        expected = (count, config.condition_size)
        if condition.shape != expected:
            raise ValueError(
                f"{config.condition} must give a {expected} array, not {tuple(condition.shape)}"
            )
        vector = F.pad(condition.to(device), (0, 1))  # (B, N + 1)
        if dropped is not None:
            vector = vector.where(~dropped[:, None], self.tell(None, count)["vector"])
        return {"vector": vector}

    def predict(
        self, x: Float[Tensor, "B C H W"], time: Float[Tensor, " B"], cond: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The network's own prediction, of the kind that the configuration says."""
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
        """What samplers ask: the expected picture in [-1, 1], guided towards the condition, and
        then by whatever `steer` puts around it.
        """
        denoise = conditional_denoiser(self.predict, self.schedule, self.config.predicts)
        cond = self.tell(condition, count)
        if condition is None:  # nothing to be guided towards
            guidance = 1.0
        if guidance != 1 and not self.config.dropped:
            raise ValueError(
                "this model was never trained without its condition (drop 0), which guidance "
                f"leads away from: guidance must be 1, not {guidance}"
            )
        guided = rescaled(denoise, cond, self.tell(None, count), guidance, rescale, self.kind)
        steered = steer(guided) if steer else guided
        return clipped(steered) if self.config.clip else steered


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
    """What training minimises: the matching loss at random levels, the condition dropped at times.

    Noise and levels are drawn unless they are given, as they are for numbers on held-out pictures.
    Term: `mse`, of the network's own prediction.
    """
    count, device = len(image), image.device
    dropped = torch.rand(count, device=device) < drop if drop and condition is not None else None
    cond = model.tell(condition, count, dropped)
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

    What is not given is the configuration's. Put the model into evaluation mode first.
    """
    config = model.config
    sampler = sampler or config.sampler
    walked = sampling_levels(model, steps, spacing, sampler, eta)
    start = noise.start((config.channels, config.height, config.width))
    x = (walked[0].sigma * start).to(next(model.parameters()).device)
    denoise = model.denoiser(
        condition, len(x), config.guidance if guidance is None else guidance, rescale, steer
    )
    return draw(sampler, denoise, x, walked, noise, eta=eta)


def sampling_levels(
    model: PixelDiffusion,
    steps: int = 0,
    spacing: Kind | None = None,
    sampler: str = "",
    eta: float | None = None,
) -> list[Level]:
    """The levels that `sample` walks."""
    config = model.config
    chosen = Spacing(spacing or config.spacing, whole_times=config.schedule not in ("edm", "flow"))
    sampler, steps = sampler or config.sampler, steps or config.steps
    return walk(model.schedule, sampler, steps, chosen, eta=eta)


def prepare(model: PixelDiffusion, dtype: torch.dtype | None) -> None:
    """Channels last where inference is in float32: a U-Net on a CPU with AVX2 takes 0.76 of the
    time, on a Zen 5 0.93. In bfloat16 small ones lose more in their norms than convolutions gain
    (1.15), and training gains nothing by it.
    """
    device = next(model.parameters()).device
    if runtime.precision("auto", device) == "float32":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


KINDS = {"pixel-diffusion": ModelKind(PixelDiffusionConfig, PixelDiffusion, prepare)}

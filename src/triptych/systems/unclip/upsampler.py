"""The upsamplers: a larger picture from a small one (arXiv:2204.06125, section 2.1).

Diffusion on pixels, told the small picture as further channels, enlarged. There is no text and no
attention, so that a network trained on crops draws complete pictures. The small pictures of
training are degraded, since those of the decoder are not quite real ones.

Dimensions: B pictures, C channels, H height, W width, h w those of the small picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.diffusion.denoiser import PARAMETERISATIONS, denoiser
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.objective import matching, training_levels
from triptych.diffusion.samplers.levels import sampler_levels
from triptych.diffusion.sampling import run_sampler
from triptych.diffusion.schedule import Discrete, Levels, betas
from triptych.diffusion.spacing import Spacing
from triptych.diffusion.steps import Denoiser, Level, Step
from triptych.fields import bounded
from triptych.nn.checks import require_at_least
from triptych.nn.loss import Loss
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig

DIFFERENCE_SCALE = 8.0
"""What differences are multiplied by, which brings them nearer to the size of the noise: those of
scenes deviate by 0.04.
"""


@dataclass(frozen=True)
@bounded
class UpsamplerConfig:
    """Configuration of an upsampler; the defaults are Karlo's, from 64 to 256 pixels."""

    small: int = 64
    """Side of the small pictures in pixels."""
    size: int = 256
    """Side of the large ones."""
    channels: int = 3
    widths: tuple[int, ...] = (320, 640, 960, 1280)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 3
    time_width: int = 1280
    conditioning: Literal["add", "scale_shift"] = "add"
    resampling: Literal["convolution", "residual"] = "residual"
    patch: int = 1
    groups: int = 32
    schedule: Literal["cosine", "linear"] = "cosine"
    predicts: Literal["noise", "velocity"] = "noise"
    """What the network predicts."""
    draws: Literal["picture", "difference"] = "picture"
    """What is diffused: the picture, or its difference from the enlarged small one, as in
    arXiv:2104.14951, whose large areas are right from the start.
    """
    last: bool = False
    """A network of its own for the last step: Karlo's was trained against a discriminator."""
    steps: int = 7
    """Default of `generate`, as is sampler."""
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        require_at_least(self, 1, "small", "channels", "steps")
        if self.size <= self.small:
            raise ValueError(
                f"an upsampler makes pictures larger: size must be above {self.small}, not "
                f"{self.size}"
            )

    @property
    def unet(self) -> UNetConfig:
        """The U-Net, without attention."""
        return UNetConfig(
            2 * self.channels,
            self.channels,
            self.widths,
            self.blocks,
            attention=(),
            time_width=self.time_width,
            conditioning=self.conditioning,
            resampling=self.resampling,
            middle_attention=False,
            patch=self.patch,
            groups=self.groups,
        )


class Upsampler(nn.Module):
    """A U-Net that reads noise and the enlarged small picture, and one for the last step if any."""

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config = config
        self.schedule = Discrete(tuple(betas(config.schedule)))
        self.unet = UNet(config.unet)
        self.last = UNet(config.unet) if config.last else None

    def predict(
        self, x: Float[Tensor, "B C H W"], time: Tensor, enlarged: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """The noise in x, or what the configuration has instead."""
        predicted: Tensor = self.unet(torch.cat([x, enlarged], dim=1), time)
        return predicted

    def to_drawn(
        self, picture: Float[Tensor, "B C H W"], enlarged: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """What is diffused of a picture."""
        if self.config.draws == "picture":
            return picture
        return DIFFERENCE_SCALE * (picture - enlarged)

    def to_picture(
        self, drawn: Float[Tensor, "B C H W"], enlarged: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """The picture of what is diffused."""
        if self.config.draws == "picture":
            return drawn
        return enlarged + drawn / DIFFERENCE_SCALE


def enlarge(small: Float[Tensor, "B C h w"], size: int) -> Float[Tensor, "B C H W"]:
    """The small picture at `size` x `size` pixels, bicubic, as the network reads it."""
    return F.interpolate(small, size=(size, size), mode="bicubic", antialias=True)


def shrink(picture: Float[Tensor, "B C H W"], factor: int) -> Float[Tensor, "B C h w"]:
    """The small picture: bicubic, with antialiasing."""
    side = picture.shape[2] // factor
    small = F.interpolate(picture, (side, side), mode="bicubic", antialias=True)
    return small.clamp(-1, 1)


def psnr(one: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of pictures in [-1, 1], in decibels."""
    errors = (one - other).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / errors.clamp(min=1e-10))


def objective(
    model: Upsampler,
    picture: Float[Tensor, "B C H W"],
    enlarged: Float[Tensor, "B C H W"],
    *,
    noise: Float[Tensor, "B C H W"] | None = None,
    at: Levels | None = None,
) -> Loss:
    """The matching loss of pictures, or crops of them, given the degraded and enlarged small ones.

    Noise and levels are drawn unless they are given. Term: `mse`, of what is predicted.
    """
    at = at or training_levels(model.schedule, len(picture), picture.device)
    noise = torch.randn_like(picture) if noise is None else noise
    return matching(
        lambda x, time: model.predict(x, time, enlarged),
        PARAMETERISATIONS[model.config.predicts],
        model.to_drawn(picture, enlarged),
        noise,
        at,
    )


def sampling_levels(model: Upsampler, steps: int = 0) -> list[Level]:
    """The noise levels of the steps of `sample`: whole timesteps, evenly from the last to 0."""
    chosen = Spacing("linspace", whole_times=True)
    config = model.config
    return sampler_levels(model.schedule, config.sampler, steps or config.steps, chosen)


def sample(
    model: Upsampler,
    small: Float[Tensor, "B C h w"],
    noise: PictureNoise,
    *,
    steps: int = 0,
) -> Iterator[Step]:
    """Large pictures of these small ones, step by step; the last step's x is in [-1, 1] but for
    rounding.

    Defaults are the configuration's.
    """
    config = model.config
    levels = sampling_levels(model, steps)
    enlarged = enlarge(small, config.size)
    start = noise.start((config.channels, config.size, config.size))
    x = levels[0].sigma * start.to(small)

    def denoise_by(unet: UNet) -> Denoiser:
        def predict(x: Tensor, time: Tensor) -> Tensor:
            output: Tensor = unet(torch.cat([x, enlarged], dim=1), time)
            return output

        plain = denoiser(predict, model.schedule, config.predicts)

        def clamped(x: Tensor, level: Level) -> Tensor:
            picture = model.to_picture(plain(x, level), enlarged).clamp(-1, 1)
            return model.to_drawn(picture, enlarged)

        return clamped

    denoise = denoise_by(model.unet)
    finish = denoise_by(model.last) if model.last else denoise

    def chosen(x: Tensor, level: Level) -> Tensor:
        return (finish if level == levels[-2] else denoise)(x, level)

    for step in run_sampler(config.sampler, chosen, x, levels, noise):
        x, x0 = (model.to_picture(each, enlarged) for each in (step.x, step.x0))
        yield Step(x, x0, step.level)

"""The start of sampling: noise, a picture for image to image, or a picture and a mask.

Noise is drawn in the order of diffusers' pipelines, so that the same generators give the same
result: the autoencoder's posterior of the picture, the initial noise, the posterior of the picture
without its masked part.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from triptych.diffusion.editing import add_noise
from triptych.diffusion.noise import PictureNoise, Stream
from triptych.diffusion.steps import Level
from triptych.nn.tiles import pad_to_multiple
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.vision.given_pictures import Picture, picture_name
from triptych.vision.pixels import read_named

TILE = 1024
"""Side of a tile in pixels. Pictures of more than TILE x TILE pixels are encoded and decoded in
tiles, in the memory of one.
"""


class Original(NamedTuple):
    """The picture that sampling starts from."""

    picture: UInt8[np.ndarray, "H W C"]
    paint: Bool[np.ndarray, "H W"] | None  # the mask: True where pixels are generated
    notes: tuple[str, ...]


class Start(NamedTuple):
    """The start of a sampler, and what inpainting needs."""

    x: Float[Tensor, "B Z h w"]
    noise: Float[Tensor, "B Z h w"]
    known: Float[Tensor, "B Z h w"] | None = None  # latents of the original
    paint: Bool[Tensor, "1 1 h w"] | None = None
    beside: Float[Tensor, "B _ h w"] | None = None  # further channels of the U-Net's input


def open_original(
    image: Picture, mask: Picture, size: tuple[int, int] | None, channels: int
) -> Original:
    """Open a picture and, if given, a mask, in this height and width.

    A picture of another size is resized and cropped around its middle, except with a mask, which
    keeps pixels as they are.

    Raises:
        ValueError: a file is not a picture, or the mask has another size or is black.
    """
    picture = read_named("image", image, channels=channels)
    height, width = picture.shape[:2]
    if not mask:
        if size is None or size == (height, width):
            return Original(picture, None, ())
        note = (
            f"the picture of {width}x{height} is resized and cropped around its middle to "
            f"{size[1]}x{size[0]}"
        )
        return Original(_resize_and_crop(picture, size), None, (note,))
    if size not in (None, (height, width)):
        assert size is not None
        raise ValueError(
            f"with a mask, size must be the picture's, {width}x{height}, not {size[1]}x{size[0]}"
        )
    paint = read_named("mask", mask, channels=1)[:, :, 0] >= 128
    if paint.shape != (height, width):
        raise ValueError(
            f"mask {picture_name(mask)} has {paint.shape[1]}x{paint.shape[0]} pixels, the picture "
            f"{width}x{height}: they must have the same size"
        )
    if not paint.any():
        raise ValueError(f"mask {picture_name(mask)} is black: it must be white where to paint")
    return Original(picture, paint, ())


def _resize_and_crop(
    picture: UInt8[np.ndarray, "_H _W C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W C"]:
    height, width, channels = picture.shape
    scale = min(height / size[0], width / size[1])
    tall, wide = size[0] * scale, size[1] * scale
    left, top = (width - wide) / 2, (height - tall) / 2
    image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
    box = (left, top, left + wide, top + tall)
    resized = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).reshape(*size, channels)


def prepare_start(
    model: StableDiffusion,
    noise: PictureNoise,
    level: Level,
    scale: float,
    size: tuple[int, int],
    *,
    original: Original | None = None,
    from_noise: bool = True,
    vary: tuple[Sequence[Stream], float] | None = None,
    latents: Float[Tensor, "B Z h w"] | None = None,
) -> Start:
    """The start of each picture of a batch, at the first noise level.

    Pure noise is multiplied by `scale`. `from_noise` is False for a strength below 1, where the
    start is the original with noise. `vary` and `latents` are those of `start_noise`.
    """
    device = next(model.parameters()).device
    draw = partial(start_noise, noise, model.config.latent_shape(*size), vary, latents)
    if original is None:
        fresh = draw().to(device)
        return Start(scale * fresh, fresh)
    image = (torch.tensor(original.picture).permute(2, 0, 1)[None] / 127.5 - 1).to(device)
    if original.paint is None:
        clean = encode_picture(model, image, noise)
        fresh = draw().to(device)
        return Start(add_noise(clean, fresh, level), fresh)
    pixels = torch.from_numpy(original.paint)[None, None].to(device)  # (1, 1, H, W)
    factor = model.config.factor
    paint = pad_to_multiple(pixels.float(), factor)[:, :, ::factor, ::factor] > 0.5  # diffusers
    if not paint.any():
        raise ValueError("the mask is too thin: at the resolution of the latents it is black")
    inpainting_unet = model.config.unet.in_channels > model.config.unet.out_channels
    known = None if inpainting_unet and from_noise else encode_picture(model, image, noise)
    fresh = draw().to(device)
    masked = encode_picture(model, image.where(~pixels, torch.zeros_like(image)), noise)
    x = scale * fresh if from_noise or known is None else add_noise(known, fresh, level)
    if not inpainting_unet:
        return Start(x, fresh, known, paint)
    mask = paint.to(masked.dtype).expand(len(masked), -1, -1, -1)
    return Start(x, fresh, beside=torch.cat([mask, masked], dim=1))


def start_noise(
    noise: PictureNoise,
    shape: Sequence[int],
    vary: tuple[Sequence[Stream], float] | None = None,
    latents: Float[Tensor, "B Z h w"] | None = None,
) -> Float[Tensor, "B Z h w"]:
    """Standard normal noise for each picture, interpolated with that of a second stream where
    `vary` has streams and their share.

    `latents` replace it. It is drawn all the same, so that later draws of the streams stay the
    same.
    """
    fresh = noise.start(shape)
    if latents is not None:
        return latents
    if vary is None:
        return fresh
    streams, share = vary
    others = torch.stack([stream.normal(shape) for stream in streams])
    return interpolate_noise(fresh, others, share)


def interpolate_noise(
    start: Float[Tensor, "B Z h w"], end: Float[Tensor, "B Z h w"], share: float
) -> Float[Tensor, "B Z h w"]:
    """Spherical interpolation of each picture's noise, which keeps its variance (Shoemake 1985,
    equation 1).
    """
    flat = [x.flatten(1).double() for x in (start, end)]
    cosine = F.cosine_similarity(flat[0], flat[1]).clamp(-1, 1)
    angle = cosine.acos()[:, None]
    along = torch.stack([((1 - share) * angle).sin(), (share * angle).sin()]) / angle.sin()
    straight = along.new_tensor([1 - share, share])[:, None, None].expand_as(along)
    weights = along.where(angle.sin().abs() > 1e-6, straight)  # for equal noise
    return (weights[0] * flat[0] + weights[1] * flat[1]).to(start.dtype).view_as(start)


def encode_picture(
    model: StableDiffusion, image: Float[Tensor, "1 C H W"], noise: PictureNoise
) -> Float[Tensor, "B Z h w"]:
    """Scaled latents of a picture for each stream of noise: a sample of the posterior, or with a
    deterministic autoencoder the same for all.
    """
    autoencoder = model.autoencoder
    tile = tile_side(image.shape[2], image.shape[3])
    if not isinstance(autoencoder, Autoencoder):
        latents: Tensor = autoencoder.encode(image, tile=tile)
        return latents.expand(len(noise.streams), -1, -1, -1)
    posterior = autoencoder.posterior(image, tile)
    draws = noise.start(posterior.mean.shape[1:]).to(image.device)
    return autoencoder.scale(posterior.sample(draws))


def tile_side(height: int, width: int) -> int | None:
    """The side of tiles for a picture of this size; None for no tiles."""
    return TILE if height * width > TILE * TILE else None

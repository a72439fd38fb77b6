"""A picture to start from and a mask of what to paint: files in, latents out.

The order in which noise is drawn for a picture is that of diffusers' pipelines, so that the same
generators give the same result: what the autoencoder is unsure of in the picture, the start, what
it is unsure of in the picture without its painted part.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from triptych.diffusion.editing import noised
from triptych.diffusion.noise import PictureNoise, Stream
from triptych.diffusion.samplers import Level
from triptych.nn.tiles import continued
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.vision.images import open_picture

TILE = 1024
"""Pixels of a side. Pictures of more than TILE x TILE pixels are encoded and decoded in tiles of
it, in the memory of one.
"""


class Original(NamedTuple):
    """What is started from."""

    picture: UInt8[np.ndarray, "H W C"]
    paint: Bool[np.ndarray, "H W"] | None  # True where it is drawn anew
    notes: tuple[str, ...]


class Start(NamedTuple):
    """Where a sampler starts, and what it knows."""

    x: Float[Tensor, "B Z h w"]
    noise: Float[Tensor, "B Z h w"]
    known: Float[Tensor, "B Z h w"] | None = None  # latents of the parts that stay
    paint: Bool[Tensor, "1 1 h w"] | None = None
    beside: Float[Tensor, "B _ h w"] | None = None  # further channels of the U-Net's input


def open_original(image: str, mask: str, size: tuple[int, int] | None, channels: int) -> Original:
    """The picture in the height and width wanted, and where its mask is white.

    A picture of another size is scaled to cover the one wanted and cut around its middle; with a
    mask, whose unpainted pixels stay as they are, that is refused.

    Raises:
        ValueError: a file that is no sound picture, a mask of another size or that paints nothing.
    """
    picture = _opened("image", image, channels)
    height, width = picture.shape[:2]
    if not mask:
        if size is None or size == (height, width):
            return Original(picture, None, ())
        notes = (
            f"the picture of {width}x{height} is scaled to cover {size[1]}x{size[0]} and cut "
            "around its middle"
        )
        return Original(_covering(picture, size), None, (notes,))
    if size not in (None, (height, width)):
        assert size is not None
        raise ValueError(
            f"with a mask the pixels around it stay as they are: size is the picture's, "
            f"{width}x{height}, not {size[1]}x{size[0]}"
        )
    paint = _opened("mask", mask, 1)[:, :, 0] >= 128
    if paint.shape != (height, width):
        raise ValueError(
            f"mask {Path(mask).name} has {paint.shape[1]}x{paint.shape[0]} pixels, the picture "
            f"{width}x{height}: they must be of one size"
        )
    if not paint.any():
        raise ValueError(f"mask {Path(mask).name} is black: white parts are drawn, and it has none")
    return Original(picture, paint, ())


def _opened(field: str, file: str, channels: int) -> UInt8[np.ndarray, "H W C"]:
    try:
        return open_picture(Path(file), channels=channels)
    except ValueError as error:
        raise ValueError(f"{field} {file}: {error}") from error


def _covering(
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


def start_of(
    model: StableDiffusion,
    noise: PictureNoise,
    level: Level,
    scale: float,
    size: tuple[int, int],
    *,
    original: Original | None = None,
    whole: bool = True,
    vary: tuple[Sequence[Stream], float] | None = None,
) -> Start:
    """Where each picture starts.

    `scale` is what noise is multiplied with at the first level of a way that starts there; `whole`
    is whether that is so (a strength of 1), and `vary` are streams to mix in and their share.
    """
    device = next(model.parameters()).device
    shape = model.config.latent_shape(*size)
    if original is None:
        fresh = start_noise(noise, shape, vary).to(device)
        return Start(scale * fresh, fresh)
    image = _tensor(original.picture).to(device)
    if original.paint is None:
        latents = encoded(model, image, noise, device)
        fresh = start_noise(noise, shape, vary).to(device)
        return Start(noised(latents, fresh, level), fresh)
    pixels = torch.from_numpy(original.paint)[None, None].to(device)  # (1, 1, H, W)
    factor = model.config.factor
    paint = continued(pixels.float(), factor)[:, :, ::factor, ::factor] > 0.5  # as diffusers reads
    if not paint.any():
        raise ValueError("the mask is too thin: no place of the latents lies in its white parts")
    beside_it = model.config.unet.in_channels > model.config.unet.out_channels
    known = None if beside_it and whole else encoded(model, image, noise, device)
    fresh = start_noise(noise, shape, vary).to(device)
    hidden = encoded(model, image.where(~pixels, torch.zeros_like(image)), noise, device)
    x = scale * fresh if whole or known is None else noised(known, fresh, level)
    if not beside_it:
        return Start(x, fresh, known, paint)
    mask = paint.to(hidden.dtype).expand(len(hidden), -1, -1, -1)
    return Start(x, fresh, beside=torch.cat([mask, hidden], dim=1))


def start_noise(
    noise: PictureNoise,
    shape: Sequence[int],
    vary: tuple[Sequence[Stream], float] | None = None,
) -> Float[Tensor, "B Z h w"]:
    """Standard normal noise of each picture, mixed with that of a second stream."""
    fresh = noise.start(shape)
    if vary is None:
        return fresh
    streams, share = vary
    others = torch.stack([stream.normal(shape) for stream in streams])
    return spherical(fresh, others, share)


def spherical(
    start: Float[Tensor, "B Z h w"], end: Float[Tensor, "B Z h w"], share: float
) -> Float[Tensor, "B Z h w"]:
    """Part of the way along the great circle, picture by picture: what lies between two draws of
    noise is noise of the same strength (Shoemake 1985, equation 1).
    """
    flat = [x.flatten(1).double() for x in (start, end)]
    cosine = F.cosine_similarity(flat[0], flat[1]).clamp(-1, 1)
    angle = cosine.acos()[:, None]
    along = torch.stack([((1 - share) * angle).sin(), (share * angle).sin()]) / angle.sin()
    straight = along.new_tensor([1 - share, share])[:, None, None].expand_as(along)
    weights = along.where(angle.sin().abs() > 1e-6, straight)  # the same noise twice
    return (weights[0] * flat[0] + weights[1] * flat[1]).to(start.dtype).view_as(start)


def encoded(
    model: StableDiffusion,
    image: Float[Tensor, "1 C H W"],
    noise: PictureNoise,
    device: torch.device,
) -> Float[Tensor, "B Z h w"]:
    """Scaled latents of a picture, once for each stream; where the autoencoder says how sure it is,
    a draw of its own for each.
    """
    coder = model.autoencoder
    tile = tile_of(image.shape[2], image.shape[3])
    if not isinstance(coder, Autoencoder):
        latents: Tensor = coder.encode(image, tile=tile)
        return latents.expand(len(noise.streams), -1, -1, -1)
    posterior = coder.posterior(image, tile)
    draws = noise.start(posterior.mean.shape[1:]).to(device)
    return coder.scale(posterior.sample(draws))


def tile_of(height: int, width: int) -> int | None:
    """The side of tiles for a picture of this size: None, no tiles, up to TILE x TILE pixels."""
    return TILE if height * width > TILE * TILE else None


def _tensor(picture: UInt8[np.ndarray, "H W C"]) -> Float[Tensor, "1 C H W"]:
    return torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1

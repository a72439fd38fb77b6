"""What training leaves as it is: the frozen parts around a U-Net, and what a step needs of them.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triptych.data.disk.table import Table
from triptych.data.order.buckets import bucketed, shapes
from triptych.data.source import Source
from triptych.diffusion.denoiser import Conditioning
from triptych.systems.stable_diffusion.adapters.lora_files import write_lora
from triptych.systems.stable_diffusion.inputs.encode_prompts import size_conditioning, uncropped
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.training.latent_cache import (
    LatentCache,
    drawn_latents,
    moments,
)
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.train.recipe import Batch
from triptych.weights.skeleton import skeleton


def around(
    model: StableDiffusion, cache: LatentCache | None, device: torch.device
) -> tuple[StableDiffusion, Callable[[nn.Module], StableDiffusion]]:
    """What the objective sees of a model of which the U-Net alone moves, and a function that puts
    the frozen parts around a U-Net.
    """
    config, unet = model.config, model.unet.to(device)
    if cache is not None:
        learner = skeleton(lambda: StableDiffusion(config))
        learner.unet = unet
        return learner, lambda module: cache.whole(module, device)
    model.to(device)

    def whole(module: nn.Module) -> StableDiffusion:
        found = skeleton(lambda: StableDiffusion(config))
        found.text, found.autoencoder = model.text, model.autoencoder
        found.unet = module  # type: ignore[assignment]
        return found

    return model, whole


def cut(source: Source, config: StableDiffusionConfig, pixels: int) -> Source:
    """Pictures in buckets of about `pixels` x `pixels`; with 0 in squares as ever, but with the
    numbers that SDXL is told of them.

    Raises:
        ValueError: a source whose pictures are squares already, or no such buckets.
    """
    if isinstance(source, Table) and (pixels or config.sizes):
        step = config.factor << (len(config.unet.widths) - 1)
        return bucketed(source, shapes(pixels, step) if pixels else (source.info.shape[:2],))
    if pixels:
        raise ValueError(
            f"the pictures of {source.info.name!r} are all square: leave out --buckets"
        )
    return source


def told_sizes(
    config: StableDiffusionConfig, batch: Batch, shape: tuple[int, int, int], device: torch.device
) -> Conditioning:
    """The size conditioning of a batch, where the U-Net reads one."""
    if not config.sizes:
        return {}
    crop = batch.get("sizes")
    if crop is None:
        count = len(batch["mean" if "mean" in batch else "image"])
        crop = uncropped(shape[:2]).expand(count, -1)
    return {"sizes": size_conditioning(config.sizes, crop).to(device)}


def encoded(
    model: StableDiffusion, image: Float[Tensor, "B C H W"], *, likeliest: bool = False
) -> Float[Tensor, "B Z h w"]:
    """Scaled latents; of an autoencoder that says how sure it is, a draw or the likeliest."""
    with torch.no_grad():
        mean, deviation = moments(model.autoencoder, image)
        return drawn_latents(mean, None if likeliest else deviation)


def latents_of(
    model: StableDiffusion, batch: Batch, device: torch.device, *, likeliest: bool = False
) -> Float[Tensor, "B Z h w"]:
    """Scaled latents of a batch, from its pictures or from the cache."""
    if "mean" not in batch:
        return encoded(model, batch["image"].to(device), likeliest=likeliest)
    deviation = None if likeliest else batch.get("deviation")
    return drawn_latents(
        batch["mean"].to(device), None if deviation is None else deviation.to(device)
    )


def lora_file(run: Path, module: nn.Module) -> None:
    """The low-rank updates of a U-Net beside its merged weights."""
    assert isinstance(module, LatentUNet)
    write_lora(module, run / "lora.safetensors")


def refuse_untrainable(name: str, config: StableDiffusionConfig) -> None:
    """Raise ValueError for a published model that is told what a folder does not say."""
    unet = config.unet
    if unet.in_channels != unet.out_channels or unet.labels:
        raise ValueError(
            f"{name} reads {unet.in_channels} channels, {unet.out_channels} of which are latents: "
            "models for inpainting and upscaling cannot be trained here. Go on from one that reads "
            "latents alone; the pipeline inpaints with it, too"
        )
    if config.sizes not in (0, 6):
        raise ValueError(
            f"{name} is told how well each picture is liked, which the data does not say: a "
            "refiner cannot be trained here"
        )

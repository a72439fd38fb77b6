"""Training a U-Net alone: the frozen networks around it, and the conditioning by picture sizes."""

from collections.abc import Callable

import torch
from torch import nn

from triptych.data.disk.table import Table
from triptych.data.order.buckets import assign_buckets, bucket_shapes
from triptych.data.source import Source
from triptych.diffusion.denoiser import Conditioning
from triptych.systems.stable_diffusion.inputs.encode_prompts import size_conditioning, uncropped
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.training.latent_cache import LatentCache
from triptych.train.recipe import Batch
from triptych.weights.skeleton import skeleton


def separate_unet(
    model: StableDiffusion, cache: LatentCache | None, device: torch.device
) -> tuple[StableDiffusion, Callable[[nn.Module], StableDiffusion]]:
    """The model that the objective needs while only the U-Net trains, and a function from a U-Net
    to the complete model.

    With a cache the first has no frozen networks in memory, and the second maps them from disk.
    """
    config, unet = model.config, model.unet.to(device)
    if cache is not None:
        learner = skeleton(lambda: StableDiffusion(config))
        learner.unet = unet
        return learner, lambda module: cache.restore_model(module, device)
    model.to(device)

    def complete(module: nn.Module) -> StableDiffusion:
        around = skeleton(lambda: StableDiffusion(config))
        around.text, around.autoencoder = model.text, model.autoencoder
        around.unet = module  # type: ignore[assignment]
        return around

    return model, complete


def crop_to_buckets(source: Source, config: StableDiffusionConfig, size: int) -> Source:
    """Pictures in aspect-ratio buckets of about `size` x `size` pixels; in squares where `size` is
    0, with the sizes that SDXL is conditioned on.

    Raises:
        ValueError: all pictures are squares already, or `size` is no multiple of the U-Net's step.
    """
    if isinstance(source, Table) and (size or config.sizes):
        step = config.factor << (len(config.unet.widths) - 1)
        shapes = bucket_shapes(size, step) if size else (source.info.shape[:2],)
        return assign_buckets(source, shapes)
    if size:
        raise ValueError(
            f"the pictures of {source.info.name!r} are all square: leave out --buckets"
        )
    return source


def condition_on_sizes(
    config: StableDiffusionConfig, batch: Batch, shape: tuple[int, int, int], device: torch.device
) -> Conditioning:
    """The size conditioning of a batch, if the U-Net has one; by default nothing is cut off."""
    if not config.sizes:
        return {}
    crop = batch.get("sizes")
    if crop is None:
        count = len(batch["mean" if "mean" in batch else "image"])
        crop = uncropped(shape[:2]).expand(count, -1)
    return {"sizes": size_conditioning(config.sizes, crop).to(device)}


def refuse_untrainable(name: str, config: StableDiffusionConfig) -> None:
    """Raise ValueError for a model whose inputs the training data cannot provide."""
    unet = config.unet
    if unet.in_channels != unet.out_channels or unet.labels:
        raise ValueError(
            f"{name} reads {unet.in_channels} channels but predicts {unet.out_channels}: models "
            "for inpainting and upscaling cannot be trained here. Start from a model that reads "
            "latents only; every such model can inpaint as well"
        )
    if config.sizes not in (0, 6):
        raise ValueError(
            f"{name} is conditioned on an aesthetic score, which the data does not have: a refiner "
            "cannot be trained here"
        )

"""Pictures to the latents that a training step denoises, from the autoencoder or from the cache.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder
from triptych.systems.stable_diffusion.model import Patches, StableDiffusion
from triptych.train.recipe import Batch


def encode_moments(
    autoencoder: Autoencoder | TinyAutoencoder | Patches, image: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "B Z h w"], Float[Tensor, "B Z h w"] | None]:
    """Mean and standard deviation of the scaled latents; no deviation from a deterministic encoder.

    Both are contiguous whatever the network's memory format: noise is drawn in memory order.
    """
    if not isinstance(autoencoder, Autoencoder):
        return autoencoder.encode(image).contiguous(), None
    posterior = autoencoder.posterior(image)
    mean, deviation = autoencoder.scale(posterior.mean), autoencoder.scaled_deviation(posterior)
    return mean.contiguous(), deviation.contiguous()


def sample_latents(
    mean: Float[Tensor, "B Z h w"], deviation: Float[Tensor, "B Z h w"] | None
) -> Float[Tensor, "B Z h w"]:
    """A draw from the posterior, by torch's global generator; the mean where none is given."""
    return mean if deviation is None else mean + deviation * torch.randn_like(mean)


def encode_latents(
    model: StableDiffusion, image: Float[Tensor, "B C H W"], *, likeliest: bool = False
) -> Float[Tensor, "B Z h w"]:
    """Scaled latents: a draw from the posterior, or its mean where `likeliest`."""
    with torch.no_grad():
        mean, deviation = encode_moments(model.autoencoder, image)
        return sample_latents(mean, None if likeliest else deviation)


def batch_latents(
    model: StableDiffusion, batch: Batch, device: torch.device, *, likeliest: bool = False
) -> Float[Tensor, "B Z h w"]:
    """`encode_latents` of a batch of pictures, or the same from cached moments."""
    if "mean" not in batch:
        return encode_latents(model, batch["image"].to(device), likeliest=likeliest)
    deviation = None if likeliest else batch.get("deviation")
    return sample_latents(
        batch["mean"].to(device), None if deviation is None else deviation.to(device)
    )

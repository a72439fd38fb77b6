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


def batch_latents(
    model: StableDiffusion, batch: Batch, device: torch.device, *, likeliest: bool = False
) -> Float[Tensor, "B Z h w"]:
    """Scaled latents of a batch of pictures or of their cached moments: a sample of the posterior,
    by torch's global generator, or its mean where `likeliest`.
    """
    mean: Tensor
    deviation: Tensor | None
    if "mean" in batch:
        mean, deviation = batch["mean"].to(device), batch.get("deviation")
    else:
        with torch.no_grad():
            mean, deviation = encode_moments(model.autoencoder, batch["image"].to(device))
    if likeliest or deviation is None:
        return mean
    return mean + deviation.to(device) * torch.randn_like(mean)

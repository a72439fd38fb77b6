"""The losses of the autoencoder and its patch discriminator (arXiv:2112.10752, appendix G).

The autoencoder minimises a reconstruction error per value, a perceptual distance, an adversarial
loss (Esser et al., arXiv:2012.09841) and a small KL divergence of the latents from a standard
normal.

Dimensions: B pictures, C channels, H height, W width, Z latent channels, h w latent sides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from triptych.nn.checks import require_at_least
from triptych.nn.loss import Loss
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.perceptual import (
    PatchDiscriminator,
    hinge_critic,
    hinge_generator,
)

Distance = Callable[[Tensor, Tensor], Tensor]
"""From two batches of pictures to the perceptual distance of each pair, (B,)."""
AddUp = Callable[[Sequence[Tensor]], None]
"""Replaces tensors in place by their sums over all processes that share a batch."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; the defaults are those of the published autoencoders."""

    kl: float = 1e-6
    """Of the KL divergence in nats, relative to the error summed over a picture."""
    perceptual: float = 1.0
    """Of the perceptual distance, which is added to the error of every value."""
    adversarial: float = 0.5
    """Of the adversarial loss, after `adaptive_weight`."""
    latent_noise: float = 0.0
    """Deviation of the share of noise in the decoded latents; see `perturb`."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "kl", "perceptual", "adversarial", "latent_noise")


class Reconstruction(nn.Module):
    """The autoencoder and its likelihood, which the generator's update trains.

    "l1" is the absolute error. "gaussian" is a normal distribution with one learned variance for
    all values, initially `deviation` squared; with `kl` 1 and no other terms the loss is then the
    negative evidence lower bound in nats.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        likelihood: Literal["l1", "gaussian"] = "l1",
        deviation: float = 1.0,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        start = torch.tensor(2 * math.log(deviation))
        self.logvar = nn.Parameter(start) if likelihood == "gaussian" else None

    def error(
        self,
        image: Float[Tensor, "B C H W"],
        decoded: Float[Tensor, "B C H W"],
        distance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:
        """The error of each picture, summed over values, with `distance` added to each value."""
        difference = (decoded - image).flatten(1)  # (B, C H W)
        values = difference.shape[1]
        error = difference.abs() if self.logvar is None else 0.5 * difference.square()
        error = error.sum(1)
        if distance is not None:
            error = error + values * distance
        if self.logvar is None:
            return error
        return error / self.logvar.exp() + 0.5 * values * (self.logvar + math.log(2 * math.pi))


def generator_objective(
    model: Reconstruction,
    image: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B Z h w"],
    weights: LossWeights,
    *,
    perceptual: Distance | None = None,
    discriminator: PatchDiscriminator | None = None,
    add_up: AddUp = lambda tensors: None,
) -> Loss:
    """The loss of the autoencoder.

    The discriminator is optional; leave it out in the first steps, until reconstructions are good.
    `add_up` sums the gradients of `adaptive_weight` over the processes that share a batch.

    Terms: `absolute` (mean absolute error), `kl` (nats per picture), `perceptual`, `g_loss` (minus
    the mean score), `adaptive_weight`, and `sigma`, the learned standard deviation.
    """
    autoencoder = model.autoencoder
    height, width = image.shape[2:]
    posterior = autoencoder.posterior(image)
    latents = autoencoder.scale(posterior.sample(noise))
    if weights.latent_noise:
        latents = perturb(latents, weights.latent_noise)
    decoded = autoencoder.decode(latents, (height, width))
    terms = {"absolute": (decoded - image).detach().abs().mean()}
    distance = None
    if perceptual is not None and weights.perceptual:
        distance = perceptual(image, decoded)
        terms["perceptual"] = distance.detach().mean()
        distance = weights.perceptual * distance
    error = model.error(image, decoded, distance).sum()
    kl = posterior.kl()
    terms["kl"] = kl.detach().mean()
    total = error + weights.kl * kl.sum()
    if discriminator is not None and weights.adversarial:
        # detached weights, so that no gradients of the discriminator are computed
        frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        scores = hinge_generator(functional_call(discriminator, frozen, (decoded,)))
        last = autoencoder.decoder.conv_out.weight
        balance = adaptive_weight(error, scores.sum(), last, add_up)
        total = total + weights.adversarial * balance * scores.sum()
        terms |= {"g_loss": scores.detach().mean(), "adaptive_weight": balance}
    if model.logvar is not None:
        terms["sigma"] = (0.5 * model.logvar.detach()).exp()
    return Loss(total, len(image), terms)


def perturb(latents: Float[Tensor, "B Z h w"], amount: float) -> Float[Tensor, "B Z h w"]:
    """Latents with noise like the errors of a sampler, so that the decoder learns to forgive them
    (arXiv:2510.11690, section 4.3).

    A picture's noise has a share of each channel's deviation over the batch; the share is the
    absolute value of a normal number of deviation `amount`. No gradient reaches the channels'
    deviation, which the encoder would otherwise reduce.
    """
    deviation = latents.detach().std((0, 2, 3), keepdim=True)  # (1, Z, 1, 1)
    share = amount * torch.randn(len(latents), 1, 1, 1, device=latents.device).abs()
    return latents + share.to(latents.dtype) * deviation * torch.randn_like(latents)


def adaptive_weight(
    reconstruction: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    last: Tensor,
    add_up: AddUp = lambda tensors: None,
) -> Float[Tensor, ""]:
    """Ratio of the gradient norms of both losses at the last layer (arXiv:2012.09841, eq. 7).

    At most 10,000, and detached.
    """
    gradients = [
        torch.autograd.grad(loss, last, retain_graph=True)[0]
        for loss in (reconstruction, adversarial)
    ]
    add_up(gradients)
    norm, adversarial_norm = (gradient.norm() for gradient in gradients)
    weight: Tensor = (norm / (adversarial_norm + 1e-6)).clamp(max=1e4).detach()
    return weight


def discriminator_objective(
    model: Reconstruction,
    discriminator: PatchDiscriminator,
    image: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B Z h w"],
) -> Loss:
    """The loss of the discriminator on pictures and their reconstructions.

    Terms: `d_loss` (1 for scores of 0), and the mean scores `real` and `fake`.
    """
    with torch.no_grad():
        decoded = model.autoencoder.reconstruct(image, noise)
    # one batch is enough, because norms do not mix pictures
    real, fake = discriminator(torch.cat([image, decoded])).chunk(2)
    loss = hinge_critic(real, fake)
    return Loss(
        loss.sum(),
        len(image),
        {
            "d_loss": loss.detach().mean(),
            "real": real.detach().mean(),
            "fake": fake.detach().mean(),
        },
    )

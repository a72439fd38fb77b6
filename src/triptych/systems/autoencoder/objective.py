"""What an autoencoder and its patch discriminator minimise (arXiv:2112.10752, appendix G).

Pictures must come back: value by value, in the features of a network that sees, and so that no
patch looks generated (Esser et al., arXiv:2012.09841); the latents are drawn slightly towards a
standard normal.

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

from triptych.nn.loss import Loss
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.perceptual import (
    PatchDiscriminator,
    hinge_critic,
    hinge_generator,
)

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures to one perceptual distance per picture, (B,)."""
AddUp = Callable[[Sequence[Tensor]], None]
"""Replaces tensors by their sums over the processes that share a batch."""


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts; the defaults are those of the published autoencoders."""

    kl: float = 1e-6
    """Of the nats of the latents, against the sum over the values of a picture."""
    perceptual: float = 1.0
    """Of the perceptual distance, at every value of a picture."""
    adversarial: float = 0.5
    """Of the discriminator's opinion, after it is brought to the reconstruction's size."""

    def __post_init__(self) -> None:
        for name in ("kl", "perceptual", "adversarial"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")


class Reconstruction(nn.Module):
    """What the generator's update moves: an autoencoder and how far off it believes a value is.

    "l1" counts absolute differences. "gaussian" is the likelihood of a normal distribution whose
    variance, one for all values, is learned; with `kl` 1 and nothing else the objective then is
    minus the evidence lower bound, in nats. `deviation` is what it starts from.
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
        """The sum over the values of each picture, the (weighted) distance added to every value."""
        difference = (decoded - image).flatten(1)  # (B, C H W)
        values = difference.shape[1]
        off = difference.abs() if self.logvar is None else 0.5 * difference.square()
        off = off.sum(1)
        if distance is not None:
            off = off + values * distance
        if self.logvar is None:
            return off
        return off / self.logvar.exp() + 0.5 * values * (self.logvar + math.log(2 * math.pi))


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
    """What the autoencoder minimises. Without a discriminator nothing adversarial is counted: give
    none for the first steps, until reconstructions are worth judging. `add_up` adds the gradients
    that are weighed over the processes which a batch is spread over.

    Terms: `absolute` (mean difference of a value), `kl` (nats a picture), `perceptual`, `g_loss`
    (minus the mean score), `adaptive_weight`, and `sigma`, the learned deviation.
    """
    autoencoder = model.autoencoder
    height, width = image.shape[2:]
    posterior = autoencoder.posterior(image)
    latents = autoencoder.scale(posterior.sample(noise))
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
        # its weights are constants here: gradients that nobody uses are not computed
        frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        opinion = hinge_generator(functional_call(discriminator, frozen, (decoded,)))
        last = autoencoder.decoder.conv_out.weight
        balance = adaptive_weight(error, opinion.sum(), last, add_up)
        total = total + weights.adversarial * balance * opinion.sum()
        terms |= {"g_loss": opinion.detach().mean(), "adaptive_weight": balance}
    if model.logvar is not None:
        terms["sigma"] = (0.5 * model.logvar.detach()).exp()
    return Loss(total, len(image), terms)


def adaptive_weight(
    reconstruction: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    last: Tensor,
    add_up: AddUp = lambda tensors: None,
) -> Float[Tensor, ""]:
    """How much stronger the reconstruction pulls at the last layer (arXiv:2012.09841, eq. 7).

    At most 10,000; a constant, through which no gradient flows.
    """
    gradients = [
        torch.autograd.grad(loss, last, retain_graph=True)[0]
        for loss in (reconstruction, adversarial)
    ]
    add_up(gradients)
    pull, push = (gradient.norm() for gradient in gradients)
    weight: Tensor = (pull / (push + 1e-6)).clamp(max=1e4).detach()
    return weight


def discriminator_objective(
    model: Reconstruction,
    discriminator: PatchDiscriminator,
    image: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B Z h w"],
) -> Loss:
    """What the discriminator minimises, on pictures and their reconstructions.

    Terms: `d_loss` (1 for one that knows nothing), and the mean scores `real` and `fake`.
    """
    with torch.no_grad():
        decoded = model.autoencoder.reconstruct(image, noise)
    # together, since norms are of a picture alone
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

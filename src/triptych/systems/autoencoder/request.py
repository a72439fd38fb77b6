"""Settings of the KL autoencoder, and presets that work."""

from dataclasses import dataclass, replace
from typing import Literal

from triptych.given import ModelName
from triptych.nn.checks import require_at_least
from triptych.train.settings import Training, check_numbers

TRAINING = Training(data="scenes", size=32, schedule="cosine", warmup=100, ema_halflife=200)


@dataclass(frozen=True)
class TrainAutoencoder:
    """KL autoencoder: compresses pictures to latents for latent diffusion (Rombach 2022)."""

    training: Training = TRAINING
    latent_channels: int = 4
    """Channels of the latents."""
    widths: tuple[int, ...] = (32, 64, 96)
    """Channels of the levels; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks per level."""
    groups: int = 16
    """Groups of the group normalisation."""
    attention: bool = False
    """Self-attention between the blocks of the smallest level."""
    quant_conv: bool = True
    """1 x 1 convolutions around the latents, as published; without them, channels that the encoder
    learns not to use are removed from the trained model.
    """
    likelihood: Literal["l1", "gaussian"] = "l1"
    """Reconstruction loss: absolute error, or a Gaussian likelihood with one learned deviation."""
    deviation: float = 0.05
    """Initial deviation of the Gaussian likelihood, for pixels in [-1, 1]. The KL term weighs as
    its square; it changes by about a thousandth per step.
    """
    kl: float = 1e-3
    """Weight of the KL term in nats, against the reconstruction loss summed over a picture."""
    latent_noise: float = 0.0
    """Noise on the latents that are decoded in training, as a share of each channel's deviation:
    the decoder then forgives small errors of a sampler. The share differs between pictures: it is
    the absolute value of a normal number with this deviation (arXiv:2510.11690, section 4.3).
    """
    perceptual: ModelName = ""
    """A trained classifier or CLIP for a perceptual loss in its features; empty is none."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    adversarial: float = 0.0
    """Weight of a patch discriminator's loss; 0.5 is usual, 0 trains none."""
    adversarial_from: int = 0
    """First step with the adversarial loss: late enough that reconstructions are worth judging."""
    discriminator_widths: tuple[int, ...] = (32, 64)
    """Channels of the discriminator's layers."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the updates of filters and matrices between the first and the last layer;
    everything else uses AdamW.
    """
    matrix_rate: float = 0.01
    """Learning rate of the filters and matrices that muon updates."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    discriminator_learning_rate: float = 5e-4
    """Learning rate of the discriminator."""
    max_norm: float = 1e4
    """Gradients are clipped to this norm; the loss is summed over a picture, so norms are large."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require_at_least(self, 0, "kl", "perceptual_weight", "adversarial", "adversarial_from")
        require_at_least(self, 0, "latent_noise")
        if not self.deviation > 0:
            raise ValueError(f"deviation must be above 0, not {self.deviation}")


PRESETS = {
    "tiny": TrainAutoencoder(
        replace(
            TRAINING,
            size=64,
            batch_size=16,
            steps=3500,
            evaluate_every=500,
            sample_every=1000,
            precision="auto",
        ),
        latent_channels=12,
        widths=(16, 48, 96),
        likelihood="gaussian",
        deviation=1.0,
        kl=1e-5,
        optimizer="muon",
    ),
    "small": TrainAutoencoder(
        replace(
            TRAINING,
            size=64,
            batch_size=32,
            steps=1200,
            ema_halflife=100,
            evaluate_every=400,
            sample_every=1000,
            precision="auto",
        ),
        latent_channels=32,
        widths=(32, 64, 128, 96),
        attention=True,
        quant_conv=False,
        likelihood="gaussian",
        kl=0.3,
        latent_noise=0.15,
        optimizer="muon",
    ),
    "f8": TrainAutoencoder(
        Training(
            size=256,
            batch_size=16,
            accumulate=1,
            steps=200_000,
            schedule="constant",
            warmup=1000,
            ema_halflife=2000,
            evaluate_every=5000,
            sample_every=5000,
            precision="auto",
        ),
        widths=(128, 256, 512, 512),
        blocks=2,
        groups=32,
        attention=True,
        kl=1e-6,
        adversarial=0.5,
        adversarial_from=50_000,
        discriminator_widths=(64, 128, 256),
        learning_rate=7e-5,
        discriminator_learning_rate=7e-5,
    ),
}
"""The default first."""

"""Settings of the KL autoencoder, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.train.settings import Training


@dataclass(frozen=True)
class TrainAutoencoder:
    """KL autoencoder: pictures as small grids of numbers, in which diffusion then works (Rombach
    2022).
    """

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes", size=32, schedule="cosine", warmup=100, ema_halflife=200
        )
    )
    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64, 96)
    """Channels per level; each level after the first halves the side."""
    blocks: int = 1
    groups: int = 16
    attention: bool = False
    """Attention over all pixels between the blocks of the smallest grid."""
    likelihood: Literal["l1", "gaussian"] = "l1"
    """Absolute differences, or a normal distribution whose deviation is learned."""
    deviation: float = 0.05
    """What it is at first, where pictures go from -1 to 1. `kl` weighs as its square, and it moves
    by a thousandth a step: from 1 it comes near the error of a good reconstruction in 3,000.
    """
    kl: float = 1e-3
    """Weight of the nats of the latents, against the sum over the values of a picture."""
    perceptual: str = ""
    """A trained classifier or CLIP whose features pictures are compared in, too."""
    perceptual_weight: float = 1.0
    adversarial: float = 0.0
    """Weight of a patch discriminator's opinion, 0 for none; there 0.5."""
    adversarial_from: int = 0
    """The step from which it counts: when reconstructions are worth judging."""
    discriminator_widths: tuple[int, ...] = (32, 64)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: filters and matrices between the first and last layers of encoder and decoder take
    steps of equal length in all directions; the rest keeps to AdamW, as the discriminator does.
    """
    matrix_rate: float = 0.01
    """Learning rate of those under muon; `learning_rate` is the others'."""
    learning_rate: float = 1e-3
    discriminator_learning_rate: float = 5e-4
    max_norm: float = 1e4
    """Gradients are scaled down to this norm; the objective is a sum over a picture's values."""

    def __post_init__(self) -> None:
        for name in ("kl", "perceptual_weight", "adversarial", "adversarial_from"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not self.deviation > 0:
            raise ValueError(f"deviation must be above 0, not {self.deviation}")


PRESETS = {
    "tiny": TrainAutoencoder(
        Training(
            data="scenes",
            size=64,
            batch_size=16,
            steps=3500,
            schedule="cosine",
            warmup=100,
            ema_halflife=200,
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

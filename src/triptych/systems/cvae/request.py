"""Settings of the conditional VAE, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.nn.checks import require_at_least
from triptych.train.settings import Training, check_numbers


@dataclass(frozen=True)
class TrainCvae:
    """Conditional VAE: draw pictures of a class or with attributes (Sohn 2015, Dykeman 2016)."""

    training: Training = field(default_factory=Training)
    condition: Literal["label", "attributes", "vector", "quadrants", "none"] = "label"
    """Condition of a picture: class, attributes, numbers, visible quadrants, or none."""
    quadrants: int = 1
    """With condition `quadrants`: how many of the four quadrants are visible, 1 to 3."""
    latent: int = 16
    """Numbers of the latent code z."""
    network: Literal["mlp", "convolutional"] = "convolutional"
    """Layers of encoder and decoder."""
    widths: tuple[int, ...] = (32, 64, 256)
    """Hidden layers of the encoder; the decoder has them in reverse."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Of a pixel: its grey value as a probability, or a normal density with a learned variance."""
    learned_prior: bool = False
    """Learn p(z | condition) instead of using the standard normal distribution."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the evidence lower bound."""
    kl_warmup: int = 0
    """Steps over which beta rises from 0."""
    free_bits: float = 0.0
    """Nats per latent dimension that the KL term does not penalise (arXiv:1606.04934)."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_norm: float = 100.0
    """Largest gradient norm, before clipping; the loss is in nats per picture, not per pixel."""

    def __post_init__(self) -> None:
        check_numbers(self)


PRESETS = {
    "digits": TrainCvae(
        Training(steps=3000, schedule="cosine", warmup=100, ema_halflife=100, sample_every=1000),
        latent=3,
        network="mlp",
        widths=(256, 128),
        learning_rate=2e-3,
    ),
    "mnist": TrainCvae(
        Training(steps=15_000, schedule="cosine", warmup=200, ema_halflife=500, log_every=100),
        latent=3,
        network="mlp",
        widths=(500, 500),
        learning_rate=1.5e-3,
    ),
    "quadrants": TrainCvae(
        Training(steps=12_000, schedule="cosine", warmup=200, ema_halflife=500, log_every=100),
        condition="quadrants",
        latent=32,
        network="mlp",
        widths=(500, 500),
        learned_prior=True,
        learning_rate=1e-3,
        weight_decay=1e-2,
    ),
    "pictures": TrainCvae(
        Training(size=64, steps=20_000, schedule="cosine", warmup=500, ema_halflife=500),
        latent=64,
        widths=(32, 64, 128, 512),
        likelihood="gaussian",
    ),
}
"""The default first."""


@dataclass(frozen=True)
class EvaluateVae:
    """Options of the likelihood estimate of a VAE."""

    likelihood_samples: int = 100
    """Importance samples per picture for the likelihood."""
    likelihood_pictures: int = 1000
    """Number of test pictures for the likelihood."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "likelihood_samples", "likelihood_pictures")

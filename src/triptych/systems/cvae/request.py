"""Settings of the conditional VAE, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.train.settings import Training


@dataclass(frozen=True)
class TrainCvae:
    """Conditional VAE: draw pictures of a class or with attributes (Sohn 2015, Dykeman 2016)."""

    training: Training = field(default_factory=Training)
    condition: Literal["label", "attributes", "vector", "quadrants", "none"] = "label"
    """What the model is told: the class, the attributes, numbers, visible quadrants, or nothing."""
    quadrants: int = 1
    """With condition `quadrants`: how many of the four are visible."""
    latent: int = 16
    network: Literal["mlp", "convolutional"] = "convolutional"
    widths: tuple[int, ...] = (32, 64, 256)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    learned_prior: bool = False
    """Learn p(z | condition) instead of the standard normal."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the evidence lower bound."""
    kl_warmup: int = 0
    """Steps over which beta rises from zero."""
    free_bits: float = 0.0
    """Nats per latent dimension that the KL term does not punish (arXiv:1606.04934)."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_norm: float = 100.0
    """Gradients are scaled down to this norm; the objective is in nats a picture, not a pixel."""


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
    """How the likelihood of a VAE is estimated."""

    likelihood_samples: int = 100
    """Importance samples for the likelihood of each picture."""
    likelihood_pictures: int = 1000
    """Test pictures that the likelihood is estimated on."""

    def __post_init__(self) -> None:
        for name in ("likelihood_samples", "likelihood_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

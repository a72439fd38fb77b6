"""Settings of the conditional WGAN-GP, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.train.settings import Condition, Training


@dataclass(frozen=True)
class TrainWgan:
    """Conditional WGAN-GP: critic updates, then one generator update (Gulrajani 2017; the
    lecture).
    """

    training: Training = field(default_factory=lambda: Training(batch_size=64, ema_halflife=500))
    condition: Condition = "label"
    latent: int = 64
    generator_widths: tuple[int, ...] = (128, 64)
    critic_widths: tuple[int, ...] = (64, 128)
    critic: Literal["planes", "projection"] = "planes"
    """The condition as extra channels, as in the lecture, or by projection (arXiv:1802.05637)."""
    generator_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the noise and the generator's smallest planes."""
    critic_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the critic's smallest planes and its score."""
    generator: Literal["input", "norms"] = "input"
    """The condition beside the noise, or there and in every batch norm (arXiv:1707.00683)."""
    critic_steps: int = 3
    gp_weight: float = 10.0
    gp_factor: Literal["uniform", "normal"] = "uniform"
    """How real and fake are mixed: the paper's U[0, 1], or the lecture's normal distribution."""
    critic_data: Literal["fresh", "same"] = "fresh"
    """A fresh batch for every critic step (the paper), or one batch for the whole step (the
    lecture).
    """
    learning_rate: float = 2e-4
    critic_learning_rate: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.9


PRESETS = {
    "digits": TrainWgan(
        Training(batch_size=64, steps=3000, schedule="linear", ema_halflife=100),
        latent=16,
        generator_widths=(64, 32),
        critic_widths=(32, 64),
        learning_rate=5e-4,
        critic_learning_rate=5e-4,
    ),
    "mnist": TrainWgan(
        Training(
            batch_size=64,
            steps=17_000,
            schedule="linear",
            ema_halflife=400,
            log_every=100,
            save_every=500,
            evaluate_every=500,
        ),
        latent=10,
        generator_widths=(64, 32),
        critic_widths=(32, 64),
        critic="projection",
        generator_hidden=(256,),
        critic_hidden=(256,),
        generator="norms",
        critic_steps=1,
        learning_rate=5e-4,
        critic_learning_rate=1e-3,
    ),
    "lecture": TrainWgan(
        Training(batch_size=128, steps=2000, size=64),
        latent=32,
        generator_widths=(128, 128, 128, 64),
        critic_widths=(64, 128, 128, 128),
        gp_factor="normal",
        critic_data="same",
        learning_rate=5e-5,
        critic_learning_rate=5e-5,
        beta1=0.5,
    ),
}
"""The default first."""

"""Settings of the conditional WGAN-GP, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.train.settings import ConditionKind, Training, check_numbers


@dataclass(frozen=True)
class TrainWgan:
    """Conditional WGAN-GP: critic updates, then one generator update (Gulrajani 2017; the
    lecture).
    """

    training: Training = field(default_factory=lambda: Training(batch_size=64, ema_halflife=500))
    condition: ConditionKind = "label"
    """What pictures are conditioned on: class, attributes, or nothing."""
    latent: int = 64
    """Numbers of noise per picture."""
    generator_widths: tuple[int, ...] = (128, 64)
    """Channels of the generator, from its smallest feature maps; each doubles the side."""
    critic_widths: tuple[int, ...] = (64, 128)
    """Channels of the critic; each halves the side."""
    critic: Literal["planes", "projection"] = "planes"
    """The critic's condition: extra channels (the lecture), or a projection (arXiv:1802.05637)."""
    generator_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the noise and the generator's smallest feature maps."""
    critic_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the critic's smallest feature maps and its score."""
    generator: Literal["input", "norms"] = "input"
    """The generator's condition: with the noise, or also in each batch norm (arXiv:1707.00683)."""
    critic_steps: int = 3
    """Critic updates per generator update."""
    gp_weight: float = 10.0
    """Weight of the gradient penalty."""
    gp_factor: Literal["uniform", "normal"] = "uniform"
    """Distribution of the factor that mixes real and fake: U[0, 1] (paper), or normal (lecture)."""
    critic_data: Literal["fresh", "same"] = "fresh"
    """A fresh batch for each critic update (paper), or one batch for all of a step (lecture)."""
    learning_rate: float = 2e-4
    """Learning rate of the generator."""
    critic_learning_rate: float = 2e-4
    """Learning rate of the critic."""
    beta1: float = 0.0
    """Adam's decay rate of the first moment, of both networks."""
    beta2: float = 0.9
    """Adam's decay rate of the second moment, of both networks."""

    def __post_init__(self) -> None:
        check_numbers(self)


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

"""Settings of class-conditional diffusion on pixels, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.train.settings import Condition, Training


@dataclass(frozen=True)
class TrainPixelDiffusion:
    """Class-conditional diffusion on pixels: a U-Net that removes noise (Ho 2020; guidance: Ho and
    Salimans 2022).
    """

    training: Training = field(
        default_factory=lambda: Training(
            batch_size=128, schedule="cosine", warmup=100, ema_halflife=200, precision="auto"
        )
    )
    condition: Condition = "label"
    drop: float = 0.1
    """How often the condition is left out, so that sampling can be guided; 0 forbids guidance."""
    widths: tuple[int, ...] = (64, 128, 128)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    """Levels with self-attention, counted from 0."""
    head_width: int = 32
    time_width: int = 256
    conditioning: Literal["add", "scale_shift"] = "scale_shift"
    """How time and condition reach a block: added, or as scale and shift of its normalisation."""
    patch: int = 1
    """Squares of so many pixels a side (1, 2 or 4) become one place of the U-Net."""
    groups: int = 16
    dropout: float = 0.0
    noise_schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow"] = "flow"
    zero_terminal_snr: bool = False
    """Stretch a table of betas so that it ends in pure noise."""
    shift: float = 1.0
    """Of a flow's time, towards noise; above 1 for large pictures."""
    predicts: Literal["noise", "velocity", "sample", "flow", "edm"] = "flow"
    """What the network says: the noise, a mixture of noise and picture, or the picture."""
    min_snr: float = 0.0
    """Above 0, clean levels count less: gamma of arXiv:2303.09556, there 5."""
    offset: float = 0.0
    """Offset noise, so that very dark and bright pictures are learned too; there 0.1."""
    sampler: str = "dpmpp_2m"
    """What `generate` uses unless told otherwise; so with steps, guidance and spacing."""
    sampling_steps: int = 20
    guidance: float = 2.0
    spacing: str = "trailing"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta2: float = 0.99
    max_norm: float = 1.0


PRESETS = {
    "digits": TrainPixelDiffusion(
        Training(
            batch_size=128,
            steps=3000,
            schedule="cosine",
            warmup=100,
            ema_halflife=100,
            sample_every=1000,
            precision="auto",
        ),
        widths=(48, 96),
        attention=(1,),
        head_width=24,
        time_width=128,
        groups=12,
    ),
    "mnist": TrainPixelDiffusion(
        Training(
            batch_size=64,
            steps=7200,
            schedule="cosine",
            warmup=200,
            ema_halflife=200,
            sample_every=500,
            save_every=250,
            precision="auto",
        ),
        widths=(48, 96),
        attention=(1,),
        head_width=24,
        time_width=192,
        patch=2,
        groups=12,
        guidance=1.3,
    ),
    "cifar10": TrainPixelDiffusion(
        Training(
            batch_size=128,
            steps=8000,
            schedule="cosine",
            warmup=300,
            ema_halflife=300,
            sample_every=1000,
            precision="auto",
        ),
        widths=(64, 128, 192),
        time_width=256,
        patch=2,
        dropout=0.05,
    ),
    "pictures": TrainPixelDiffusion(
        Training(
            size=64,
            batch_size=64,
            steps=30_000,
            schedule="cosine",
            warmup=500,
            ema_halflife=1000,
            sample_every=2000,
            precision="auto",
        ),
        widths=(64, 128, 192, 256),
        attention=(2, 3),
        blocks=2,
        patch=2,
        shift=1.5,
    ),
}
"""The default first."""

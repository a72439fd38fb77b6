"""Settings of class-conditional diffusion on pixels, and presets that work."""

from dataclasses import dataclass, replace
from typing import Literal

from triptych.given import Words
from triptych.train.settings import ConditionKind, Training, check_numbers

TRAINING = Training(
    batch_size=128, schedule="cosine", warmup=100, ema_halflife=200, precision="auto"
)


@dataclass(frozen=True)
class TrainPixelDiffusion:
    """Class-conditional diffusion on pixels: a U-Net that removes noise (Ho 2020; guidance: Ho and
    Salimans 2022).
    """

    training: Training = TRAINING
    condition: ConditionKind = "label"
    """What pictures are conditioned on: class, attributes, numbers, or nothing."""
    drop: float = 0.1
    """Share of pictures trained without their condition, for guidance; 0 forbids guidance."""
    widths: tuple[int, ...] = (64, 128, 128)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks per level."""
    attention: tuple[int, ...] = (2,)
    """Levels with self-attention, counted from 0."""
    head_width: int = 32
    """Channels per attention head."""
    time_width: int = 256
    """Width of the time embedding."""
    conditioning: Literal["add", "scale_shift"] = "scale_shift"
    """How a block uses time and condition: added, or as scale and shift of its normalisation."""
    patch: int = 1
    """Side of the squares of pixels that become channels at the U-Net's input: 1, 2 or 4."""
    groups: int = 16
    """Groups of the group normalisation."""
    dropout: float = 0.0
    """Dropout rate of the residual blocks."""
    noise_schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow"] = "flow"
    """The noise schedule: betas of DDPM, EDM, or rectified flow."""
    zero_terminal_snr: bool = False
    """Rescale a schedule of betas so that it ends in pure noise (arXiv:2305.08891)."""
    shift: float = 1.0
    """Shift of a flow's time towards noise; 1 is none, above 1 is for large pictures."""
    predicts: Literal["noise", "velocity", "sample", "flow", "edm"] = "flow"
    """The network's output: the noise, the picture (sample), or a combination of both."""
    min_snr: float = 0.0
    """Gamma of min-SNR weighting, which is 5 in arXiv:2303.09556; 0 is none."""
    offset: float = 0.0
    """Strength of offset noise, for very dark and bright pictures; usually 0.1, 0 is none."""
    sampler: Words = "dpmpp_2m"
    """Default sampler of `generate`."""
    sampling_steps: int = 20
    """Default steps of `generate`."""
    guidance: float = 2.0
    """Default guidance scale of `generate`."""
    spacing: Words = "trailing"
    """Default spacing of the steps of `generate`."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    beta2: float = 0.99
    """AdamW's decay rate of the second moment."""
    max_norm: float = 1.0
    """Largest gradient norm, before clipping."""

    def __post_init__(self) -> None:
        check_numbers(self)


PRESETS = {
    "digits": TrainPixelDiffusion(
        replace(TRAINING, steps=3000, ema_halflife=100, sample_every=1000),
        widths=(48, 96),
        attention=(1,),
        head_width=24,
        time_width=128,
        groups=12,
    ),
    "mnist": TrainPixelDiffusion(
        replace(TRAINING, batch_size=64, steps=7200, warmup=200, sample_every=500, save_every=250),
        widths=(48, 96),
        attention=(1,),
        head_width=24,
        time_width=192,
        patch=2,
        groups=12,
        guidance=1.3,
    ),
    "cifar10": TrainPixelDiffusion(
        replace(TRAINING, steps=8000, warmup=300, ema_halflife=300, sample_every=1000),
        widths=(64, 128, 192),
        time_width=256,
        patch=2,
        dropout=0.05,
    ),
    "pictures": TrainPixelDiffusion(
        replace(
            TRAINING,
            size=64,
            batch_size=64,
            steps=30_000,
            warmup=500,
            ema_halflife=1000,
            sample_every=2000,
        ),
        widths=(64, 128, 192, 256),
        attention=(2, 3),
        blocks=2,
        patch=2,
        shift=1.5,
    ),
}
"""The default first."""

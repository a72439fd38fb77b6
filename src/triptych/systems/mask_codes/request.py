"""Settings of the mask codes, and presets that work."""

from dataclasses import dataclass, replace

from triptych.nn.checks import require_at_least
from triptych.train.settings import Training, check_numbers

TRAINING = Training(
    data="scenes", batch_size=64, steps=3000, schedule="cosine", warmup=100, ema_halflife=100,
    sample_every=1000, evaluate_every=500,
)  # fmt: skip


@dataclass(frozen=True)
class TrainMaskCodes:
    """Mask codes: an autoencoder of masks with 16 of 128 codes, PaliGemma's `<seg>` words."""

    training: Training = TRAINING
    down: tuple[int, ...] = (8, 16, 32, 48)
    """Channels of the four convolutions that halve the side of a mask, from 64 pixels to 4."""
    width: int = 48
    """Channels of the decoder at 4 x 4; each of its layers but the first has half as many."""
    code_width: int = 32
    """Numbers of a code."""
    plain_steps: int = 1000
    """First steps without codes, after which they are put where masks are encoded by then."""
    commitment: float = 0.25
    """Weight of the loss that keeps what is encoded near its code (van den Oord 2017)."""
    spread: float = 0.1
    """Weight of the loss that pulls every code to the nearest cell of the batch, so that none stays
    unused.
    """
    learning_rate: float = 2e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require_at_least(self, 0, "commitment", "spread", "plain_steps")


PRESETS = {
    "tiny": TrainMaskCodes(),
    "published": TrainMaskCodes(
        replace(TRAINING, steps=100_000, warmup=1000, ema_halflife=1000),
        down=(16, 32, 64, 128),
        width=128,
        code_width=512,
        plain_steps=20_000,
        learning_rate=3e-4,
    ),
}
"""The default first."""

"""Settings of the classifier, and presets that work."""

from dataclasses import dataclass, field

from triptych.train.settings import Training, check_numbers


@dataclass(frozen=True)
class TrainClassifier:
    """A small ResNet: the judge of conditional samples, and the supervised baseline."""

    training: Training = field(default_factory=lambda: Training(ema_halflife=50, schedule="cosine"))
    widths: tuple[int, ...] = (24, 48, 96)
    """Channels of each stage; all but the first halve the side."""
    shift: int = 0
    """Augmentation: move each training picture by up to this many pixels."""
    learning_rate: float = 4e-3
    """Learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""

    def __post_init__(self) -> None:
        check_numbers(self)


PRESETS = {
    "digits": TrainClassifier(
        Training(steps=1000, schedule="cosine", warmup=50, ema_halflife=50, log_every=100)
    ),
    "mnist": TrainClassifier(
        Training(steps=1500, schedule="cosine", warmup=100, ema_halflife=50, log_every=100),
        shift=2,
    ),
}
"""The default first."""

"""Settings of Socher's and DeViSE's maps to word vectors, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.train.settings import Training


@dataclass(frozen=True)
class TrainWordSpace:
    """Name classes that no picture showed, by word vectors (Socher 2013, DeViSE 2013)."""

    training: Training = field(default_factory=lambda: Training(ema_halflife=50, schedule="cosine"))
    words: str = ""
    """A file of word vectors: GloVe or word2vec text, plain or .gz; .npz; or .json."""
    unseen: str = ""
    """Classes kept out of training and tested on, with commas between: cat,truck."""
    method: Literal["socher", "devise"] = "socher"
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 200
    """Width of Socher's map; DeViSE's is linear."""
    margin: float = 0.1
    """By how much DeViSE wants the right word nearer than any wrong one."""
    fine_tune: float = 0.2
    """The last share of the steps, in which DeViSE's rank loss moves the network too."""
    shift: int = 0
    """Move every training picture by up to so many pixels."""
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    max_norm: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.fine_tune <= 1:
            raise ValueError(f"fine_tune is a share of the steps, 0 to 1, not {self.fine_tune}")


PRESETS = {
    "pictures": TrainWordSpace(
        Training(
            size=32,
            steps=1500,
            schedule="cosine",
            warmup=200,
            ema_halflife=50,
            log_every=50,
        ),
        shift=2,
    ),
}
"""The default first."""

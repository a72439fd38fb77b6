"""Settings of Socher's and DeViSE's maps to word vectors, and presets that work."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.given import FileName, Words
from triptych.train.settings import Training, check_numbers


@dataclass(frozen=True)
class TrainWordSpace:
    """Classify pictures of classes without training pictures, by word vectors (Socher 2013, DeViSE
    2013).
    """

    training: Training = field(default_factory=lambda: Training(ema_halflife=50, schedule="cosine"))
    words: FileName = ""
    """A file of word vectors: GloVe or word2vec text, plain or .gz; .npz; or .json."""
    unseen: Words = ""
    """Classes kept out of training and tested on, separated by commas: cat,truck."""
    method: Literal["socher", "devise"] = "socher"
    """Socher's map into the word space, or DeViSE's linear map with a ranking loss."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of the network's stages."""
    hidden: int = 200
    """Width of the hidden layer of Socher's map; DeViSE's is linear."""
    margin: float = 0.1
    """DeViSE's margin between the scores of the right and of any wrong word."""
    fine_tune: float = 0.2
    """Last share of the steps, in which DeViSE's rank loss trains the network as well."""
    shift: int = 0
    """Largest random shift of training pictures in pixels."""
    learning_rate: float = 4e-3
    """Learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW, on matrices and filters."""
    max_norm: float = 10.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 <= self.fine_tune <= 1:
            raise ValueError(
                f"fine_tune must be a share of the steps, 0 to 1, not {self.fine_tune}"
            )


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

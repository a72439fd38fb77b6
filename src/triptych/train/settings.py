"""Settings of the training loop, for every system. No torch.

Rates are per optimizer step; half-lives, warm-ups and intervals are in steps of the loop.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from triptych.given import DataName, Words
from triptych.nn.checks import require_at_least


@dataclass(frozen=True)
class Training:
    """Settings of the training loop, for every system."""

    data: DataName = "digits"
    """`digits`, `scenes`, or a path: a folder, a range of tars, an .npz, IDX files."""
    size: int = 0
    """Side of the training pictures in pixels; 0 keeps the size of the data."""
    steps: int = 1000
    """Training steps in all; a resumed run counts those already done."""
    batch_size: int = 128
    """Examples in a batch."""
    accumulate: int = 1
    """Batches per optimizer step, with exactly summed gradients: a larger batch in the memory of a
    small one.
    """
    seed: int = 0
    """Seed of the initial weights, the order of the data and every random draw."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rates fall after the warm-up, over all steps."""
    warmup: int = 0
    """Steps over which the learning rates rise from zero."""
    rate_floor: float = 0.0
    """Where a falling schedule ends, as a share of the learning rate."""
    ema_halflife: float = 0.0
    """Half-life of the averaged weights (EMA) in steps; 0 keeps no average."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """bfloat16 is autocast: weights, optimizer and reductions stay in float32. `auto` uses it where
    the device computes it fast.
    """
    device: Words = "auto"
    """`cpu`, `cuda`, ...; `auto` takes an accelerator where there is one."""
    shard: bool = False
    """Share out weights, gradients and optimizer state among the processes that train together
    (FSDP), for models that do not fit into one; of text to image, CLIP, SigLIP, VLM and language.
    """
    recompute: bool = False
    """Compute the blocks of the network again in the backward pass instead of keeping what they
    computed: much less memory, about a third more time; the same numbers.
    """
    workers: int = 0
    """Processes that read pictures; the batches are the same for any number of them."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""
    sample_every: int = 500
    """Steps between picture grids in samples/; 0 draws only the last one."""
    evaluate_every: int = 0
    """Steps between evaluations on held-out data; 0 evaluates only at the end."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep, at least two."""

    def __post_init__(self) -> None:
        for name, least in AT_LEAST.items():
            require_at_least(self, least, name)
        check_numbers(self)
        if not 0 <= self.rate_floor <= 1:
            raise ValueError(f"rate_floor is a share, 0 to 1, not {self.rate_floor}")


AT_LEAST = {
    "steps": 1, "batch_size": 1, "accumulate": 1, "size": 0, "warmup": 0, "ema_halflife": 0,
    "workers": 0, "log_every": 1, "sample_every": 0, "evaluate_every": 0, "save_every": 1,
    "keep": 2,
}  # fmt: skip


MAY_CHANGE = (
    "steps", "log_every", "sample_every", "evaluate_every", "save_every", "keep", "workers",
    "device", "shard", "recompute",
)  # fmt: skip
"""Fields of `Training` that a resumed run may change: none of them alters a step already done."""


NOT_NEGATIVE = (
    "learning_rate", "critic_learning_rate", "discriminator_learning_rate", "matrix_rate",
    "weight_decay", "beta", "free_bits", "gp_weight", "min_snr", "offset", "guidance", "margin",
    "shift",
)  # fmt: skip
POSITIVE = ("max_norm",)
BELOW_ONE = ("beta1", "beta2", "drop", "dropout")


def check_numbers(settings: object) -> None:
    """Check the numbers that the settings of several recipes share, by the names of their fields.

    Raises:
        ValueError: one is NaN or infinite, or out of its range.
    """
    for field in fields(settings):  # type: ignore[arg-type]
        name, value = field.name, getattr(settings, field.name)
        if not isinstance(value, float | int):
            continue
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")
        if name in NOT_NEGATIVE and value < 0:
            raise ValueError(f"{name} must be at least 0, not {value:g}")
        if name in POSITIVE and value <= 0:
            raise ValueError(f"{name} must be above 0, not {value:g}")
        if name in BELOW_ONE and not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, not {value:g}")


ConditionKind = Literal["none", "label", "attributes", "vector"]


class TrainRequest(Protocol):
    """A recipe's settings: a frozen dataclass that is the Python argument, the flags of `triptych
    train`, and the record in `run.json`.
    """

    @property
    def training(self) -> Training: ...

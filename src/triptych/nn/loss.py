"""What every objective of this package returns."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """The sum to minimise, how many items it sums over, and named terms for the journal.

    A sum and a count, not a mean, so that accumulated micro-batches of unequal size and ranks add
    up to exactly the large batch.
    """

    total: Tensor
    count: int | Tensor  # type: ignore[assignment]  # examples, or unmasked tokens
    terms: dict[str, Tensor] = {}  # noqa: RUF012  # means over the items; never mutated

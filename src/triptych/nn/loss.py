"""The return value of every objective."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """The sum to minimise, the number of items in it, and named terms for the journal.

    A sum and a count, not a mean, so that micro-batches of unequal size, and ranks, add up to
    exactly the large batch.
    """

    total: Tensor
    count: int | Tensor  # type: ignore[assignment]  # examples, or unmasked tokens
    terms: dict[str, Tensor] = {}  # noqa: RUF012  # means over the items; never mutated

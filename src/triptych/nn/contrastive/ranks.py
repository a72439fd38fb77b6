"""Exchanges of a batch that is spread over processes: what the contrastive losses need of them.

Dimensions: W ranks, b pairs of a rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class Ranks(NamedTuple):
    """This process among those of the default process group; a single one exchanges nothing."""

    rank: int = 0
    size: int = 1

    def check_equal_batches(self, image: Tensor) -> None:
        """Unequal batches would change the mean over ranks and let collectives hang.

        Raises:
            ValueError: on every rank, if shapes differ.
        """
        if self.size == 1:
            return
        shapes = self.gather(torch.tensor(image.shape, device=image.device))
        if shapes.unique(dim=0).shape[0] > 1:
            raise ValueError(
                f"all ranks need the same number and width of pairs, not {shapes.tolist()}"
            )

    def gather(self, mine: Tensor) -> Tensor:
        """Every rank's tensor, (W, ...)."""
        if self.size == 1:
            return mine[None]
        everyone = mine.new_empty(self.size, *mine.shape)
        dist.all_gather(list(everyone), mine.contiguous())
        return everyone

    def sum_to_owner(self, everyone: Tensor) -> Tensor:
        """The sum over ranks of each one's row for this rank; `everyone` is (W, ...)."""
        if self.size == 1:
            return everyone[0]
        mine = torch.empty_like(everyone[0])
        dist.reduce_scatter(mine, list(everyone))
        return mine

    def log_sum_exp(self, mine: Tensor) -> Tensor:
        """Log-sum-exp over ranks, elementwise."""
        if self.size == 1:
            return mine
        high = mine.clone()
        dist.all_reduce(high, dist.ReduceOp.MAX)
        sums = (mine - high).exp_()
        dist.all_reduce(sums)
        return sums.log_().add_(high)

    def pass_on(self, tensors: list[Tensor]) -> "Parcel":
        """Starts sending to the next rank of the ring and receiving from the previous one."""
        if self.size == 1:
            return Parcel(tensors, tensors, [])
        leaving = [tensor.contiguous() for tensor in tensors]
        arriving = [torch.empty_like(tensor) for tensor in leaving]
        operations = []
        for tensor, place in zip(leaving, arriving, strict=True):
            after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
            operations.append(dist.P2POp(dist.isend, tensor, after))
            operations.append(dist.P2POp(dist.irecv, place, before))
        return Parcel(arriving, leaving, dist.batch_isend_irecv(operations))


class Parcel(NamedTuple):
    """Tensors being sent to the next rank and received from the previous one."""

    arriving: list[Tensor]
    leaving: list[Tensor]  # must stay alive until sent
    pending: list[dist.Work]

    def wait(self) -> list[Tensor]:
        for work in self.pending:
            work.wait()
        return self.arriving


ALONE = Ranks()

"""The contrastive losses of a batch that is spread over the ranks of a process group.

Every rank calls with its own b pairs of a batch of B = W b; all pairs are compared with each other.
A rank's value is its share: **the mean over ranks is the loss of the batch**, and a rank's
gradients are those of the sum of all ranks' values. Averaging gradients over ranks (data-parallel
training) therefore gives exactly the gradient of the loss of the batch. Scaling the loss is
exact if the factor is the same on every rank (`loss / steps`).

The losses are collective: every rank must call, with equally many pairs, and all or none with
gradients.

Dimensions: W ranks, b pairs of a rank, B pairs of all, D width.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from triptych.nn.contrastive.tiles import (
    CHUNK,
    Block,
    accumulators,
    check,
    exp_scale,
    finish,
    match_counts,
    restore,
    save,
    sigmoid_sums,
    softmax_gradients,
    softmax_statistics,
)

Ranks = dist.ProcessGroup | None
"""None: the default group."""


def softmax_loss_of_ranks(
    image: Float[Tensor, "b D"],
    text: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    *,
    chunk: int = CHUNK,
    groups: Int[Tensor, " b"] | None = None,
    ranks: Ranks = None,
) -> Float[Tensor, ""]:
    """A rank's share of `softmax_loss`: its images with all texts, and all images with its texts.

    Texts are gathered, images are not: a rank computes the rows of its images, and the sums over
    columns (B numbers) are added across ranks, so that every logit is computed once. The gradients
    of texts are summed on the ranks that own them. Numbers in `groups` must mean the same on every
    rank, as those of `duplicate_groups` do.
    """
    check(image, text, groups, chunk)
    _equal_batches(image, ranks)
    loss: Tensor = SoftmaxLossOfRanks.apply(image, text, logit_scale, groups, chunk, ranks)
    return loss


def sigmoid_loss_of_ranks(
    image: Float[Tensor, "b D"],
    text: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    chunk: int = CHUNK,
    groups: Int[Tensor, " b"] | None = None,
    ranks: Ranks = None,
) -> Float[Tensor, ""]:
    """A rank's share of `sigmoid_loss`: its images with all texts, which circulate in a ring.

    A rank holds its own texts and those of one other rank at a time (arXiv:2303.15343, section
    3.3); their gradient follows one hop behind and arrives complete at its owner.
    """
    check(image, text, groups, chunk)
    _equal_batches(image, ranks)
    loss: Tensor = SigmoidLossOfRanks.apply(
        image, text, logit_scale, logit_bias, groups, chunk, ranks
    )
    return loss


def _equal_batches(image: Tensor, ranks: Ranks) -> None:
    """Otherwise the mean over ranks is not the batch's loss, and collectives would hang."""
    shapes = _gather(torch.tensor(image.shape, device=image.device), ranks)
    if shapes.unique(dim=0).shape[0] > 1:
        raise ValueError(
            f"all ranks need the same number and width of pairs, not {shapes.tolist()}"
        )


def _gather(mine: Tensor, ranks: Ranks) -> Tensor:
    """Every rank's tensor, (W, ...)."""
    everyone = mine.new_empty(dist.get_world_size(ranks), *mine.shape)
    dist.all_gather(list(everyone), mine.contiguous(), group=ranks)
    return everyone


def _sum_to_owner(everyone: Tensor, ranks: Ranks) -> Tensor:
    """The sum over ranks of each one's row for this rank; `everyone` is (W, ...)."""
    mine = torch.empty_like(everyone[0])
    dist.reduce_scatter(mine, list(everyone), group=ranks)
    return mine


def _log_sum_exp(mine: Tensor, ranks: Ranks) -> Tensor:
    """Log-sum-exp over ranks, elementwise."""
    high = mine.clone()
    dist.all_reduce(high, dist.ReduceOp.MAX, group=ranks)
    sums = (mine - high).exp_()
    dist.all_reduce(sums, group=ranks)
    return sums.log_().add_(high)


class SoftmaxLossOfRanks(torch.autograd.Function):
    """`SoftmaxLoss` on a rank's rows, with sums over columns across ranks between the passes."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        groups: Tensor | None,
        chunk: int,
        ranks: Ranks,
    ) -> Tensor:
        scale, needed = exp_scale(image, logit_scale), ctx.needs_input_grad[:3]
        own = slice(dist.get_rank(ranks) * len(text), (dist.get_rank(ranks) + 1) * len(text))
        texts = _gather(text, ranks).flatten(0, 1)  # (B, D)
        all_groups = None if groups is None else _gather(groups, ranks).flatten()
        block = Block(image, texts, scale, None, own.start, groups, all_groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            counts = match_counts(block)
            statistics = softmax_statistics(block, counts, keep=any(needed))
            statistics = statistics._replace(columns=_log_sum_exp(statistics.columns, ranks))
            loss = statistics.rows.sum() + statistics.columns[own].sum() - 2 * statistics.target
            if any(needed):
                of_image, of_texts = accumulators(block, needed)
                softmax_gradients(block, counts, statistics, of_image, of_texts)
                by_scale = finish(block, 0.5 / len(image), of_image, of_texts)
                of_text = None
                if of_texts is not None:
                    of_text = _sum_to_owner(of_texts.unflatten(0, (-1, len(text))), ranks)
                save(ctx, (image, text, logit_scale), (of_image, of_text, by_scale))
        return loss / (2 * len(image))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *restore(ctx, gradient), None, None, None


class Parcel(NamedTuple):
    """Tensors being sent to the next rank and received from the previous one."""

    arriving: list[Tensor]
    leaving: list[Tensor]  # must stay alive until sent
    pending: list[dist.Work]

    def wait(self) -> list[Tensor]:
        for work in self.pending:
            work.wait()
        return self.arriving


def _pass_on(tensors: list[Tensor], ranks: Ranks) -> Parcel:
    """Starts sending to the next rank of the ring and receiving from the previous one."""
    rank, world = dist.get_rank(ranks), dist.get_world_size(ranks)
    if world == 1:
        return Parcel(tensors, tensors, [])
    leaving = [tensor.contiguous() for tensor in tensors]
    arriving = [torch.empty_like(tensor) for tensor in leaving]
    operations = []
    for tensor, place in zip(leaving, arriving, strict=True):
        after, before = (rank + 1) % world, (rank - 1) % world
        operations.append(dist.P2POp(dist.isend, tensor, group=ranks, group_peer=after))
        operations.append(dist.P2POp(dist.irecv, place, group=ranks, group_peer=before))
    return Parcel(arriving, leaving, dist.batch_isend_irecv(operations))


def _ring(
    block: Block, of_image: Tensor | None, text_wanted: bool, ranks: Ranks
) -> tuple[Float[Tensor, " 2"], Tensor | None]:
    """`sigmoid_sums` of this rank's images with all texts, and its own texts' full gradient."""
    rank, world = dist.get_rank(ranks), dist.get_world_size(ranks)
    sums: list[Tensor] = []
    gradient: Parcel | None = None
    for hop in range(world):
        source = (rank - hop) % world  # whose texts these are
        block = block._replace(first=(rank - source) * len(block.text))
        passing = [t for t in (block.text, block.text_groups) if t is not None]
        parcel = _pass_on(passing, ranks) if hop + 1 < world else None
        of_text = torch.zeros_like(block.text, dtype=block.dtype) if text_wanted else None
        sums.append(torch.stack(sigmoid_sums(block, of_image, of_text)))
        if of_text is not None:  # the previous ranks' part, received while this rank computed
            of_text = of_text if gradient is None else of_text.add_(gradient.wait()[0])
            gradient = _pass_on([of_text], ranks)
        if parcel is not None:
            text, *groups = parcel.wait()
            block = block._replace(text=text, text_groups=groups[0] if groups else None)
    return torch.stack(sums).sum(0), None if gradient is None else gradient.wait()[0]


class SigmoidLossOfRanks(torch.autograd.Function):
    """`SigmoidLoss` on a rank's images and the texts of one rank after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        groups: Tensor | None,
        chunk: int,
        ranks: Ranks,
    ) -> Tensor:
        scale, needed = exp_scale(image, logit_scale), ctx.needs_input_grad[:4]
        block = Block(image, text, scale, logit_bias.to(scale), 0, groups, groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            of_image, _ = accumulators(block, needed)
            sums, of_text = _ring(block, of_image, needed[1], ranks)
            loss, by_bias = (sums / len(image)).unbind()
            if any(needed):
                by_scale = finish(block, 1 / len(image), of_image, of_text)
                inputs = (image, text, logit_scale, logit_bias)
                save(ctx, inputs, (of_image, of_text, by_scale, by_bias))
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *restore(ctx, gradient), None, None, None

"""The contrastive losses of a batch that is spread over the ranks of a process group.

Every rank calls with its own b pairs of a batch of B = W b; every rank's pairs are compared with
every other's. What a rank gets back is its share: **the mean over ranks is the loss of the whole
batch**, and a rank's gradients are those of the sum of all ranks' values. Averaging parameters'
gradients over ranks, as data-parallel training does, therefore gives exactly the gradient of the
whole batch's loss. The gradients are exact for the same factor on every rank (`loss / steps`).

Both are collective: every rank must call, with equally many pairs, and all or none with gradients.

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
    """A rank's share of `softmax_loss`: its images against all texts, all images against its texts.

    Texts are gathered, images stay: a rank computes the rows of its images, and ranks add their
    parts of the sums over columns (B numbers), so that no logit is computed twice in the group.
    The texts' gradients are summed back to where they came from. `groups` must have the same
    meaning on every rank (`duplicate_groups` has).
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
    """A rank's share of `sigmoid_loss`: its images against all texts, which pass by in a ring.

    A rank holds its own texts and one passing chunk, b texts of another rank (arXiv:2303.15343,
    section 3.3); the chunk's gradient travels one hop behind it and comes home complete.
    """
    check(image, text, groups, chunk)
    _equal_batches(image, ranks)
    loss: Tensor = SigmoidLossOfRanks.apply(
        image, text, logit_scale, logit_bias, groups, chunk, ranks
    )
    return loss


def _equal_batches(image: Tensor, ranks: Ranks) -> None:
    """The mean of the ranks' means is the whole batch's only then; collectives would hang else."""
    shapes = _gather(torch.tensor(image.shape, device=image.device), ranks)
    if shapes.unique(dim=0).shape[0] > 1:
        raise ValueError(f"every rank must bring as many pairs of one width, not {shapes.tolist()}")


def _gather(mine: Tensor, ranks: Ranks) -> Tensor:
    """Every rank's tensor, (W, ...)."""
    everyone = mine.new_empty(dist.get_world_size(ranks), *mine.shape)
    dist.all_gather(list(everyone), mine.contiguous(), group=ranks)
    return everyone


def _sum_to_owner(everyone: Tensor, ranks: Ranks) -> Tensor:
    """(W, ...): the sum over ranks of what each has for this one."""
    mine = torch.empty_like(everyone[0])
    dist.reduce_scatter(mine, list(everyone), group=ranks)
    return mine


def _log_sum_exp(mine: Tensor, ranks: Ranks) -> Tensor:
    """Of each entry over ranks."""
    high = mine.clone()
    dist.all_reduce(high, dist.ReduceOp.MAX, group=ranks)
    sums = (mine - high).exp_()
    dist.all_reduce(sums, group=ranks)
    return sums.log_().add_(high)


class SoftmaxLossOfRanks(torch.autograd.Function):
    """`SoftmaxLoss` on a rank's rows, between its two walks the sums over columns."""

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
        scale, wanted = exp_scale(image, logit_scale), ctx.needs_input_grad[:3]
        own = slice(dist.get_rank(ranks) * len(text), (dist.get_rank(ranks) + 1) * len(text))
        texts = _gather(text, ranks).flatten(0, 1)  # (B, D)
        all_groups = None if groups is None else _gather(groups, ranks).flatten()
        block = Block(image, texts, scale, None, own.start, groups, all_groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            counts = match_counts(block)
            walk = softmax_statistics(block, counts, keep=any(wanted))
            walk = walk._replace(columns=_log_sum_exp(walk.columns, ranks))
            loss = walk.rows.sum() + walk.columns[own].sum() - 2 * walk.target
            if any(wanted):
                of_image, of_texts = accumulators(block, wanted)
                softmax_gradients(block, counts, walk, of_image, of_texts)
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
    """Tensors on their way from the rank before to the rank after this one."""

    arriving: list[Tensor]
    leaving: list[Tensor]  # must live until they have left
    pending: list[dist.Work]

    def wait(self) -> list[Tensor]:
        for work in self.pending:
            work.wait()
        return self.arriving


def _pass_on(tensors: list[Tensor], ranks: Ranks) -> Parcel:
    """Sends to the next rank of the ring and receives as much, without waiting."""
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
    """`sigmoid_sums` of this rank's images with all texts, and its own texts' gradient from all."""
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
        if of_text is not None:  # what the ranks before found, on its way while this one computed
            of_text = of_text if gradient is None else of_text.add_(gradient.wait()[0])
            gradient = _pass_on([of_text], ranks)
        if parcel is not None:
            text, *groups = parcel.wait()
            block = block._replace(text=text, text_groups=groups[0] if groups else None)
    return torch.stack(sums).sum(0), None if gradient is None else gradient.wait()[0]


class SigmoidLossOfRanks(torch.autograd.Function):
    """`SigmoidLoss` on a rank's images and one passing chunk of texts after the other."""

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
        scale, wanted = exp_scale(image, logit_scale), ctx.needs_input_grad[:4]
        block = Block(image, text, scale, logit_bias.to(scale), 0, groups, groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            of_image, _ = accumulators(block, wanted)
            sums, of_text = _ring(block, of_image, wanted[1], ranks)
            loss, by_bias = (sums / len(image)).unbind()
            if any(wanted):
                by_scale = finish(block, 1 / len(image), of_image, of_text)
                inputs = (image, text, logit_scale, logit_bias)
                save(ctx, inputs, (of_image, of_text, by_scale, by_bias))
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *restore(ctx, gradient), None, None, None

"""CLIP's and SigLIP's losses, in memory linear in the batch size.

CLIP's symmetric cross-entropy (Radford et al. arXiv:2103.00020, figure 3) and SigLIP's pairwise
sigmoid loss (Zhai et al. arXiv:2303.15343, equation 1). The (B, B) matrix of logits is computed in
square tiles; gradients, where needed, are computed in the same pass, so that no tile has to be
kept. Value and gradients are those of the full matrix.

A batch may be spread over the ranks of a process group. Each rank calls with its b pairs of a batch
of B = W b, and all pairs are compared with each other. A rank's value is its share: **the mean over
ranks is the loss of the batch**, and a rank's gradients are those of the sum of all ranks' values.
Averaging gradients over ranks (data-parallel training) therefore gives exactly the gradient of the
loss of the batch. Scaling the loss is exact if the factor is the same on every rank. The losses are
then collective: every rank must call, with equally many pairs, and all or none with gradients.

Dimensions: B pairs, D width, T tokens; W ranks, b pairs of a rank.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from triptych.nn.contrastive.ranks import ALONE, Parcel, Ranks
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


def softmax_loss(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    logit_scale: Float[Tensor, ""],
    *,
    chunk: int = CHUNK,
    groups: Int[Tensor, " B"] | None = None,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """CLIP's loss: classifies the text of each image, and the image of each text, in the batch.

    The mean of the two cross-entropies, in nats (arXiv:2103.00020, figure 3); chance is ln B, and
    the loss of a single pair is 0. Row i of `image` and row i of `text` are the embeddings of a
    pair; `logit_scale` is the logarithm of the factor of their inner products. Pairs with equal
    numbers in `groups` (from `duplicate_groups`) all match one another and share the target evenly.

    `chunk` bounds memory and does not change the result. Half-precision embeddings are computed in
    float32, the dtype of the loss. The result can be differentiated once.

    Over several ranks texts are gathered, images are not: a rank computes the rows of its images,
    and the sums over columns (B numbers) are added across ranks, so that every logit is computed
    once. The gradients of texts are summed on the ranks that own them. Numbers in `groups` must
    mean the same on every rank, as those of `duplicate_groups` do.
    """
    check(image, text, groups, chunk)
    ranks.check_equal_batches(image)
    loss: Tensor = SoftmaxLoss.apply(image, text, logit_scale, groups, chunk, ranks)
    return loss


def sigmoid_loss(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    chunk: int = CHUNK,
    groups: Int[Tensor, " B"] | None = None,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """SigLIP's loss: classifies every pair of an image and a text as a match or not.

    The sum over texts, and the mean over images, of -log sigmoid(y logit), y = 1 for a match and -1
    otherwise (arXiv:2303.15343, equation 1), in nats. At scale and bias 0 it is B ln 2. Pairs with
    equal numbers in `groups` match one another. Otherwise as `softmax_loss`.

    Over several ranks texts circulate in a ring: a rank holds its own and those of one other rank
    at a time (arXiv:2303.15343, section 3.3); their gradient follows one hop behind and arrives
    complete at its owner.
    """
    check(image, text, groups, chunk)
    ranks.check_equal_batches(image)
    loss: Tensor = SigmoidLoss.apply(image, text, logit_scale, logit_bias, groups, chunk, ranks)
    return loss


def duplicate_groups(
    captions: Sequence[str] | Int[Tensor, "B T"],
) -> tuple[Int[Tensor, " B"], int]:
    """A number per caption, equal for equal captions, and how many repeat an earlier one.

    The numbers are 64-bit digests, so they agree between ranks and runs (for tokens: padded to one
    length). Among a million captions two different ones collide with probability below 1e-7.
    """
    texts = captions.tolist() if isinstance(captions, Tensor) else captions
    digests = [hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts]
    numbers = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    groups = torch.tensor(numbers, dtype=torch.int64)
    device = captions.device if isinstance(captions, Tensor) else groups.device
    return groups.to(device), len(numbers) - len(set(numbers))


def cached_embeddings(
    tower: Callable[..., Float[Tensor, "_ D"]],
    inputs: Tensor | tuple[Tensor, ...],
    chunk: int,
) -> Float[Tensor, "B D"]:
    """Embeddings of a large batch with the activations of one chunk in memory at a time.

    Gradient caching (Gao et al. arXiv:2101.06983): a contrastive loss needs all embeddings, but a
    tower computes each input separately, so each chunk is computed without a graph, and again when
    its gradient is known. Exact, including dropout's random numbers, at the cost of one more
    forward pass. `tower` is called with up to `chunk` rows of each tensor in `inputs`. A batch norm
    in it has the statistics of chunks and updates its running averages twice.
    """
    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs
    sizes = [len(tensor) for tensor in tensors]
    if chunk < 1 or not sizes or min(sizes) < 1 or len(set(sizes)) > 1:
        raise ValueError(
            "cached_embeddings needs a chunk of at least 1 and tensors of one length, at least 1, "
            f"not chunk {chunk} and lengths {sizes}"
        )
    parts = zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(tower, *part, use_reentrant=False) for part in parts])


def embed_pairs(
    embed_image: Callable[[Tensor], Float[Tensor, "B D"]],
    embed_text: Callable[[Tensor], Float[Tensor, "B D"]],
    pixels: Float[Tensor, "B C H W"],
    tokens: Int[Tensor, "B T"],
    cache: int,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """Embeddings of images and texts, by `cached_embeddings` where `cache` is above 0."""
    if not cache:
        return embed_image(pixels), embed_text(tokens)
    image = cached_embeddings(embed_image, pixels, cache)
    return image, cached_embeddings(embed_text, tokens, cache)


class SoftmaxLoss(torch.autograd.Function):
    """A pass over the tiles of a rank's rows for the sums of rows and columns, then, with the sums
    over columns across ranks, one for the gradients.
    """

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
        own = slice(ranks.rank * len(text), (ranks.rank + 1) * len(text))
        texts = ranks.gather(text).flatten(0, 1)  # (B, D)
        all_groups = None if groups is None else ranks.gather(groups).flatten()
        block = Block(image, texts, scale, None, own.start, groups, all_groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            counts = match_counts(block)
            statistics = softmax_statistics(block, counts, keep=any(needed))
            statistics = statistics._replace(columns=ranks.log_sum_exp(statistics.columns))
            loss = statistics.rows.sum() + statistics.columns[own].sum() - 2 * statistics.target
            if any(needed):
                of_image, of_texts = accumulators(block, needed)
                softmax_gradients(block, counts, statistics, of_image, of_texts)
                by_scale = finish(block, 0.5 / len(image), of_image, of_texts)
                of_text = None
                if of_texts is not None:
                    of_text = ranks.sum_to_owner(of_texts.unflatten(0, (-1, len(text))))
                save(ctx, (image, text, logit_scale), (of_image, of_text, by_scale))
        return loss / (2 * len(image))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *restore(ctx, gradient), None, None, None


class SigmoidLoss(torch.autograd.Function):
    """One pass: the loss and gradients of a tile depend on nothing outside it. The texts of one
    rank follow those of another.
    """

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
            of_image = accumulators(block, needed)[0]
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


def _ring(
    block: Block, of_image: Tensor | None, needs_text: bool, ranks: Ranks
) -> tuple[Float[Tensor, " 2"], Tensor | None]:
    """`sigmoid_sums` of this rank's images with all texts, and its own texts' full gradient."""
    sums: list[Tensor] = []
    gradient: Parcel | None = None
    for hop in range(ranks.size):
        source = (ranks.rank - hop) % ranks.size  # whose texts these are
        block = block._replace(first=(ranks.rank - source) * len(block.text))
        passing = [t for t in (block.text, block.text_groups) if t is not None]
        parcel = ranks.pass_on(passing) if hop + 1 < ranks.size else None
        of_text = torch.zeros_like(block.text, dtype=block.dtype) if needs_text else None
        sums.append(torch.stack(sigmoid_sums(block, of_image, of_text)))
        if of_text is not None:  # the previous ranks' part, received while this rank computed
            of_text = of_text if gradient is None else of_text.add_(gradient.wait()[0])
            gradient = ranks.pass_on([of_text])
        if parcel is not None:
            text, *groups = parcel.wait()
            block = block._replace(text=text, text_groups=groups[0] if groups else None)
    return torch.stack(sums).sum(0), None if gradient is None else gradient.wait()[0]

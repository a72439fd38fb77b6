"""CLIP's and SigLIP's losses, in memory linear in the batch size.

CLIP's symmetric cross-entropy (Radford et al. arXiv:2103.00020, figure 3) and SigLIP's pairwise
sigmoid loss (Zhai et al. arXiv:2303.15343, equation 1). The (B, B) matrix of logits is computed in
square tiles; gradients, where needed, are computed in the same pass, so that no tile has to be
kept. Value and gradients are those of the full matrix.

Dimensions: B pairs, D width, T tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

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
) -> Float[Tensor, ""]:
    """CLIP's loss: classifies the text of each image, and the image of each text, in the batch.

    The mean of the two cross-entropies, in nats (arXiv:2103.00020, figure 3); chance is ln B, and
    the loss of a single pair is 0. Row i of `image` and row i of `text` are the embeddings of a
    pair; `logit_scale` is the logarithm of the factor of their inner products. Pairs with equal
    numbers in `groups` (from `duplicate_groups`) all match one another and share the target evenly.

    `chunk` bounds memory and does not change the result. Half-precision embeddings are computed in
    float32, the dtype of the loss. The result can be differentiated once.
    """
    check(image, text, groups, chunk)
    loss: Tensor = SoftmaxLoss.apply(image, text, logit_scale, groups, chunk)
    return loss


def sigmoid_loss(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    chunk: int = CHUNK,
    groups: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """SigLIP's loss: classifies every pair of an image and a text as a match or not.

    The sum over texts, and the mean over images, of -log sigmoid(y logit), y = 1 for a match and -1
    otherwise (arXiv:2303.15343, equation 1), in nats. At scale and bias 0 it is B ln 2. Pairs with
    equal numbers in `groups` match one another. Otherwise as `softmax_loss`.
    """
    check(image, text, groups, chunk)
    loss: Tensor = SigmoidLoss.apply(image, text, logit_scale, logit_bias, groups, chunk)
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


class SoftmaxLoss(torch.autograd.Function):
    """A pass over the tiles for the sums of rows and columns, then one for the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        groups: Tensor | None,
        chunk: int,
    ) -> Tensor:
        scale, needed = exp_scale(image, logit_scale), ctx.needs_input_grad[:3]
        block = Block(image, text, scale, None, 0, groups, groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            counts = match_counts(block)
            statistics = softmax_statistics(block, counts, keep=any(needed))
            loss = (statistics.rows.sum() + statistics.columns.sum() - 2 * statistics.target) / (
                2 * len(image)
            )
            if any(needed):
                gradients = accumulators(block, needed)
                softmax_gradients(block, counts, statistics, *gradients)
                by_scale = finish(block, 0.5 / len(image), *gradients)
                save(ctx, (image, text, logit_scale), (*gradients, by_scale))
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *restore(ctx, gradient), None, None


class SigmoidLoss(torch.autograd.Function):
    """One pass: the loss and gradients of a tile depend on nothing outside it."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        groups: Tensor | None,
        chunk: int,
    ) -> Tensor:
        scale, needed = exp_scale(image, logit_scale), ctx.needs_input_grad[:4]
        block = Block(image, text, scale, logit_bias.to(scale), 0, groups, groups, chunk)
        with torch.autocast(image.device.type, enabled=False):
            gradients = accumulators(block, needed)
            loss, by_bias = sigmoid_sums(block, *gradients)
            if any(needed):
                by_scale = finish(block, 1 / len(image), *gradients)
                inputs = (image, text, logit_scale, logit_bias)
                save(ctx, inputs, (*gradients, by_scale, by_bias / len(image)))
        return loss / len(image)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *restore(ctx, gradient), None, None

"""The logits of a contrastive loss in tiles: what `losses` and `ranks` share.

A block of logits, images by texts, is computed tile by tile in two buffers. The gradient of a
tile's logits is turned into gradients of embeddings at once, so that memory grows with the number
of embeddings, not of logits.

Dimensions: N images, M texts, D width, R images and C texts of a tile.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048
"""Side of a tile; two tiles of 16 MiB (float32) are in memory."""

KEPT = 2**25
"""Logits kept (128 MiB) from the softmax loss's first pass to the second, so that batches up to
5,792 need three matrix products and not four."""

LARGEST = 80.0
"""Up to here exp(x) and 1 + exp(x) are far from float32's limit, 3.4e38 = exp(88.7)."""


def check(image: Tensor, text: Tensor, groups: Tensor | None, chunk: int) -> None:
    """Raises ValueError for arguments that the losses do not take."""
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise ValueError(
            "image and text must be embeddings of the same pairs, (B, D) with B at least 1, "
            f"not {tuple(image.shape)} and {tuple(text.shape)}"
        )
    if groups is not None and groups.shape != image.shape[:1]:
        raise ValueError(
            f"groups must give each of the {len(image)} pairs one number, shape ({len(image)},), "
            f"not {tuple(groups.shape)}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")


class Block(NamedTuple):
    """N images by M texts: the matrix of the batch, or a rank's part of it.

    Without groups, image i matches text `first` + i, which may be outside these texts (negative, or
    at least M).
    """

    image: Float[Tensor, "N D"]
    text: Float[Tensor, "M D"]
    scale: Float[Tensor, ""]  # not its logarithm
    bias: Float[Tensor, ""] | None
    first: int
    image_groups: Int[Tensor, " N"] | None
    text_groups: Int[Tensor, " M"] | None
    chunk: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation: at least float32."""
        return torch.promote_types(self.image.dtype, torch.float32)


class Tile(NamedTuple):
    """R images by C texts of a block."""

    rows: slice
    columns: slice
    image: Float[Tensor, "R D"]  # multiplied by the scale
    text: Float[Tensor, "C D"]

    def room(self, buffer: Tensor) -> Float[Tensor, "R C"]:
        """The tile's part of a buffer, reused because fresh memory costs page faults."""
        size = len(self.image) * len(self.text)
        return buffer[:size].view(len(self.image), len(self.text))

    def logits(self, block: Block, out: Tensor | None) -> Float[Tensor, "R C"]:
        if block.bias is None:
            return torch.mm(self.image, self.text.T, out=out)
        return torch.addmm(block.bias, self.image, self.text.T, out=out)

    def diagonal(self, block: Block, logits: Tensor) -> Tensor:
        """The logits of image i and text `first` + i, as a view: empty in most tiles."""
        return logits.diagonal(block.first + self.rows.start - self.columns.start)

    def matches(self, block: Block) -> Tensor | None:
        """True where image and text have the same group, (R, C); None without groups."""
        if block.image_groups is None or block.text_groups is None:
            return None
        return block.image_groups[self.rows, None] == block.text_groups[self.columns]

    def backward(self, gradient: Tensor, image: Tensor | None, text: Tensor | None) -> None:
        """Adds the gradients of the embeddings, given that of the logits, (R, C)."""
        if image is not None:
            image[self.rows].addmm_(gradient, self.text)  # times the scale: see `finish`
        if text is not None:
            text[self.columns].addmm_(gradient.T, self.image)


def tiles(block: Block) -> Iterator[Tile]:
    def slices(length: int) -> list[slice]:
        starts = range(0, length, block.chunk)
        return [slice(start, min(start + block.chunk, length)) for start in starts]

    shape = (min(block.chunk, max(len(block.image), len(block.text))), block.image.shape[1])
    images, texts = block.image.new_empty(2, *shape, dtype=block.dtype)
    for rows in slices(len(block.image)):
        image = images[: rows.stop - rows.start].copy_(block.image[rows]).mul_(block.scale)
        for columns in slices(len(block.text)):
            text = block.text[columns]
            if text.dtype != block.dtype:  # a reused buffer: fresh memory would fragment the heap
                text = texts[: len(text)].copy_(text)
            yield Tile(rows, columns, image, text)


def buffers(block: Block) -> tuple[Tensor, Tensor]:
    """Memory for two tiles."""
    size = min(block.chunk, len(block.image)) * min(block.chunk, len(block.text))
    logits, spare = block.image.new_empty(2, size, dtype=block.dtype)
    return logits, spare


def exp_scale(image: Tensor, logit_scale: Tensor) -> Tensor:
    """The scale, in the dtype of the computation."""
    return logit_scale.to(torch.promote_types(image.dtype, torch.float32)).exp()


def accumulators(block: Block, needed: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Zeros for the gradients of images and texts; None where not needed.

    `needed` is for images, texts and the scalars. The scale's gradient needs one of the first two.
    """
    of_image, of_text, *of_scalars = needed
    of_image = of_image or (any(of_scalars) and not of_text)
    image = torch.zeros_like(block.image, dtype=block.dtype) if of_image else None
    text = torch.zeros_like(block.text, dtype=block.dtype) if of_text else None
    return image, text


def finish(block: Block, share: float, image: Tensor | None, text: Tensor | None) -> Tensor:
    """Scales sums to the gradients of `share` times the loss; returns that of ln scale.

    A logit without its bias is linear in the image, in the text and in the scale, so one inner
    product suffices: the sum of logit times its gradient is <image, gradient of image>.
    """
    if text is not None:
        text.mul_(share)
    if image is not None:
        image.mul_(block.scale * share)
        return _inner(block.image, image, block.chunk)
    assert text is not None
    return _inner(block.text, text, block.chunk)


def _inner(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    pairs = zip(a.split(chunk), b.split(chunk), strict=True)
    return torch.stack([(x * y).sum() for x, y in pairs]).sum()


def save(ctx: Any, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Keeps gradients for the backward pass, in the dtype of the sums."""
    ctx.dtypes = [x.dtype for x in inputs]
    ctx.save_for_backward(*gradients)


def restore(ctx: Any, gradient: Tensor) -> list[Tensor | None]:
    """The kept gradients times the incoming one, in the order of `save`.

    Converted to the inputs' dtypes only after that: loss scaling is for gradients that float16
    cannot represent.
    """
    pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    return [None if g is None else (g * gradient).to(dtype) for g, dtype in pairs]


def sigmoid_sums(
    block: Block, image: Tensor | None, text: Tensor | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The sum of a block's losses, and the sum of the gradients of its logits.

    Adds the gradients of embeddings to `image` and `text`, as `Tile.backward` does. With z = -y
    logit the loss is softplus(z) and the logit's gradient -y sigmoid(z): both from one exp.
    """
    losses, gradients = [], []
    logits, other = buffers(block)
    for tile in tiles(block):
        spare = tile.room(other)
        z, matches = tile.logits(block, tile.room(logits)), tile.matches(block)
        sign = None if matches is None else 1 - 2 * matches.to(z.dtype)
        _flip(tile.diagonal(block, z), z, sign)
        # one exp for both; on an accelerator the comparison would synchronise
        if z.device.type == "cpu" and z.amax() <= LARGEST:
            losses.append(torch.log1p(z.exp_(), out=spare).sum())
            z.div_(torch.add(z, 1, out=spare))
        else:
            losses.append(-F.logsigmoid(-z).sum())
            z.sigmoid_()
        if image is None and text is None:
            continue
        _flip(tile.diagonal(block, z), z, sign)
        gradients.append(z.sum())
        tile.backward(z, image, text)
    loss = torch.stack(losses).sum()
    return loss, torch.stack(gradients).sum() if gradients else torch.zeros_like(loss)


def _flip(diagonal: Tensor, logits: Tensor, sign: Tensor | None) -> None:
    if sign is None:
        diagonal.neg_()
    else:
        logits.mul_(sign)


class Softmax(NamedTuple):
    """Results of the first pass over a block's tiles, for the second."""

    rows: Float[Tensor, " N"]  # log sum exp over texts
    columns: Float[Tensor, " M"]  # log sum exp over images
    target: Float[Tensor, ""]  # sum over images of the mean logit of their matches
    kept: dict[tuple[int, int], Tensor]  # logits of the first tiles


def softmax_statistics(block: Block, counts: Tensor | None, keep: bool) -> Softmax:
    """`counts` (N,) is the number of matches of each image, where there are groups."""
    rows = block.image.new_full((len(block.image),), -math.inf, dtype=block.dtype)
    columns = block.text.new_full((len(block.text),), -math.inf, dtype=block.dtype)
    targets, kept, room = [], {}, KEPT if keep else 0
    logits, other = buffers(block)
    for tile in tiles(block):
        spare = tile.room(other)
        room -= spare.numel()
        z = tile.logits(block, tile.room(logits) if room < 0 else None)
        if room >= 0:
            kept[tile.rows.start, tile.columns.start] = z
        matches = tile.matches(block)
        if matches is None or counts is None:
            targets.append(tile.diagonal(block, z).sum())
        else:
            of_images = torch.mul(z, matches, out=spare).sum(1)
            targets.append((of_images / counts[tile.rows]).sum())
        for dim, total in ((1, rows[tile.rows]), (0, columns[tile.columns])):
            high = z.amax(dim, keepdim=True)
            sums = torch.sub(z, high, out=spare).exp_().sum(dim)
            torch.logaddexp(total, sums.log_().add_(high.squeeze(dim)), out=total)
    return Softmax(rows, columns, torch.stack(targets).sum(), kept)


def softmax_gradients(
    block: Block,
    counts: Tensor | None,
    statistics: Softmax,
    image: Tensor | None,
    text: Tensor | None,
) -> None:
    """Adds the gradients of the sum over rows and columns (twice the loss) to `image`, `text`."""
    logits, other = buffers(block)
    for tile in tiles(block):
        spare = tile.room(other)
        z = statistics.kept.pop((tile.rows.start, tile.columns.start), None)
        z = tile.logits(block, tile.room(logits)) if z is None else z
        torch.sub(z, statistics.columns[tile.columns], out=spare).exp_()
        z.sub_(statistics.rows[tile.rows, None]).exp_().add_(spare)
        matches = tile.matches(block)
        if matches is None or counts is None:
            tile.diagonal(block, z).sub_(2)
        else:
            z.sub_(torch.div(matches, counts[tile.rows, None] / 2, out=spare))
        tile.backward(z, image, text)


def match_counts(block: Block) -> Float[Tensor, " N"] | None:
    """The number of texts that each image matches, where there are groups."""
    if block.image_groups is None or block.text_groups is None:
        return None
    groups, counts = block.text_groups.unique(return_counts=True)
    of_images: Tensor = counts[torch.searchsorted(groups, block.image_groups)]
    return of_images.to(block.dtype)

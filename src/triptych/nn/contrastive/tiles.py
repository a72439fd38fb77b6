"""The matrix of a contrastive loss in tiles: what `contrastive` and `contrastive_ranks` share.

A block of logits, images against texts, is walked tile by tile in two buffers. The gradient by a
tile's logits becomes gradients by embeddings at once, and the tile is forgotten: memory grows with
the number of embeddings, not with the number of logits.

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
"""Side of a tile: 16 MiB in float32, of which two are at hand."""

KEPT = 2**25
"""As many logits stay in memory (128 MiB) from the softmax loss's first walk to its second, so that
batches up to 5,792 need three matrix products and not four."""

LARGEST = 80.0
"""Up to here exp(x) and 1 + exp(x) are far from float32's limit, 3.4e38 = exp(88.7)."""


def check(image: Tensor, text: Tensor, groups: Tensor | None, chunk: int) -> None:
    """What both losses ask of their arguments, here and across ranks."""
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise ValueError(
            "image and text must be embeddings of the same pairs, both (B, D) with B at least 1, "
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
    """N images against M texts: the whole batch's square, or a rank's part of it.

    `first` is the text of image 0 (negative, or at least M: it is not among these texts), and image
    i belongs to text `first` + i, unless groups are given.
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
        """What is computed in: float32 at least."""
        return torch.promote_types(self.image.dtype, torch.float32)


class Tile(NamedTuple):
    """R images against C texts of a block."""

    rows: slice
    columns: slice
    image: Float[Tensor, "R D"]  # multiplied by the scale
    text: Float[Tensor, "C D"]

    def room(self, buffer: Tensor) -> Float[Tensor, "R C"]:
        """The tile's part of a buffer: a fresh one each time would cost much in page faults."""
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
        """True where image and text are of one group, (R, C); None without groups."""
        if block.image_groups is None or block.text_groups is None:
            return None
        return block.image_groups[self.rows, None] == block.text_groups[self.columns]

    def backward(self, gradient: Tensor, image: Tensor | None, text: Tensor | None) -> None:
        """Adds what a gradient by the logits, (R, C), means for the embeddings."""
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
            if text.dtype != block.dtype:  # fresh memory for each tile would tear holes in the heap
                text = texts[: len(text)].copy_(text)
            yield Tile(rows, columns, image, text)


def buffers(block: Block) -> tuple[Tensor, Tensor]:
    """Room for two tiles."""
    size = min(block.chunk, len(block.image)) * min(block.chunk, len(block.text))
    logits, spare = block.image.new_empty(2, size, dtype=block.dtype)
    return logits, spare


def exp_scale(image: Tensor, logit_scale: Tensor) -> Tensor:
    """The scale, in the precision that is computed in."""
    return logit_scale.to(torch.promote_types(image.dtype, torch.float32)).exp()


def accumulators(block: Block, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Zeros for the gradients by images and texts; None for what nobody asks for.

    `wanted` is about images, texts and the scalars. The scale's gradient needs one of the others.
    """
    of_image, of_text, *of_scalars = wanted
    of_image = of_image or (any(of_scalars) and not of_text)
    image = torch.zeros_like(block.image, dtype=block.dtype) if of_image else None
    text = torch.zeros_like(block.text, dtype=block.dtype) if of_text else None
    return image, text


def finish(block: Block, share: float, image: Tensor | None, text: Tensor | None) -> Tensor:
    """Makes of sums the gradients of `share` times the sum; returns the one by ln scale.

    A logit without its bias is linear in the image, in the text and in the scale, so one inner
    product is enough: the sum of logit times gradient by it is <image, gradient by image>.
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
    """Keeps gradients for the backward pass, in the precision of sums."""
    ctx.dtypes = [x.dtype for x in inputs]
    ctx.save_for_backward(*gradients)


def restore(ctx: Any, gradient: Tensor) -> list[Tensor | None]:
    """The kept gradients times the one that arrives, in the order of `save`.

    Only then each takes its input's precision: a gradient that float16 cannot hold is what a loss's
    scaling is for.
    """
    pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    return [None if g is None else (g * gradient).to(dtype) for g, dtype in pairs]


def sigmoid_sums(
    block: Block, image: Tensor | None, text: Tensor | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The sum of a block's losses, and of their gradients by the logits.

    Adds the gradients by embeddings to `image` and `text`, as `Tile.backward` does. With z = -y
    logit the loss is softplus(z) and its gradient by the logit -y sigmoid(z): both from one exp.
    """
    losses, gradients = [], []
    logits, other = buffers(block)
    for tile in tiles(block):
        spare = tile.room(other)
        z, matches = tile.logits(block, tile.room(logits)), tile.matches(block)
        sign = None if matches is None else 1 - 2 * matches.to(z.dtype)
        _flip(tile.diagonal(block, z), z, sign)
        # one exp for both; on an accelerator the comparison would wait for the tile
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
    """What the first walk over a block's tiles leaves for the second."""

    rows: Float[Tensor, " N"]  # log sum exp over texts
    columns: Float[Tensor, " M"]  # log sum exp over images
    target: Float[Tensor, ""]  # sum over images of the mean logit of their matches
    kept: dict[tuple[int, int], Tensor]  # logits of the first tiles


def softmax_statistics(block: Block, counts: Tensor | None, keep: bool) -> Softmax:
    """`counts` (N,) is how many matches an image has, where there are groups."""
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
    block: Block, counts: Tensor | None, walk: Softmax, image: Tensor | None, text: Tensor | None
) -> None:
    """Adds the gradients of the sum over rows and columns (twice the loss) to `image`, `text`."""
    logits, other = buffers(block)
    for tile in tiles(block):
        spare = tile.room(other)
        z = walk.kept.pop((tile.rows.start, tile.columns.start), None)
        z = tile.logits(block, tile.room(logits)) if z is None else z
        torch.sub(z, walk.columns[tile.columns], out=spare).exp_()
        z.sub_(walk.rows[tile.rows, None]).exp_().add_(spare)
        matches = tile.matches(block)
        if matches is None or counts is None:
            tile.diagonal(block, z).sub_(2)
        else:
            z.sub_(torch.div(matches, counts[tile.rows, None] / 2, out=spare))
        tile.backward(z, image, text)


def match_counts(block: Block) -> Float[Tensor, " N"] | None:
    """How many texts each image matches, where there are groups."""
    if block.image_groups is None or block.text_groups is None:
        return None
    groups, counts = block.text_groups.unique(return_counts=True)
    of_images: Tensor = counts[torch.searchsorted(groups, block.image_groups)]
    return of_images.to(block.dtype)

"""The upsamplers: how near their pictures are to the true large ones, and whether they look like
them, of true small pictures and of the decoder's own.

KID is taken of squares as large as the pictures that the CLIP reads: it would shrink a complete
large picture, and not see what an upsampler adds.

Dimensions: N pictures, C channels, H height, W width, h w those of the small pictures, S side.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.data.order.batches import take
from triptych.data.source import Source
from triptych.diffusion.noise import PictureNoise
from triptych.scores.fid import kernel_distance
from triptych.systems.unclip import upsampler
from triptych.systems.unclip.draw import compute_in_precision
from triptych.systems.unclip.evaluation.figures import Figure, estimate_figure, mean_figure
from triptych.systems.unclip.evaluation.priors import first_picture
from triptych.systems.unclip.request import UnclipPictures
from triptych.systems.unclip.upsampler import Upsampler, enlarge, shrink
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

TOGETHER = 16  # pictures of a batch


@torch.inference_mode()
def enlarge_all(
    network: Upsampler, small: Float[Tensor, "N C h w"], request: UnclipPictures
) -> Float[Tensor, "N C H W"]:
    """Pictures by an upsampler, that of picture i from seed + i."""
    assert request.seed is not None
    parts = []
    for start in range(0, len(small), TOGETHER):
        some = small[start : start + TOGETHER]
        noise = PictureNoise([request.seed + start + row for row in range(len(some))])
        steps = upsampler.sample(network, some, noise, steps=request.upsampler_steps)
        *_, last = compute_in_precision(network, steps, request)
        parts.append(last.x.float().cpu())
    return torch.cat(parts)


def compare_inputs(
    loaded: Loaded,
    network: Upsampler,
    true: Float[Tensor, "N C H W"],
    others: Float[Tensor, "N C H W"],
    drawn: Float[Tensor, "N C h w"],
    request: UnclipPictures,
) -> tuple[dict[str, dict[str, Figure]], Float[Tensor, "N C H W"]]:
    """The figures of an upsampler on true small pictures and on `drawn` ones, beside those of
    bicubic enlargement, and its pictures of the latter. `others` are further true large pictures,
    which all are compared with: KID of a picture and its own original would be below that of real
    ones, `real`, which is the least that can be expected.

    `psnr` is to the true large picture, which drawn ones do not have; `psnr_small` is of the small
    picture, to the large one shrunk again.
    """
    features = embed_squares(loaded, others)
    size = network.config.size
    rows: dict[str, dict[str, Figure]] = {
        "real": {"kid": kid(embed_squares(loaded, true), features, len(true))}
    }
    made = drawn
    for name, small in (("true", shrink(true, size // network.config.small)), ("decoder", drawn)):
        small = small.to(next(network.parameters()).device)
        plain = enlarge(small, size).clamp(-1, 1).cpu()
        for kind, large in (("", enlarge_all(network, small, request)), ("_bicubic", plain)):
            row = rows.setdefault(name, {})
            if name == "true":
                row[f"psnr{kind}"] = mean_figure(upsampler.psnr(large, true))
            again = shrink(large, size // network.config.small)
            row[f"psnr_small{kind}"] = mean_figure(upsampler.psnr(again, small.cpu()))
            row[f"kid{kind}"] = kid(embed_squares(loaded, large), features, len(true))
            made = made if kind else large
    return rows, made


def kid(one: Tensor, other: Tensor, count: int) -> Figure:
    """Of squares, with the interval for `count` pictures: those of one picture are not independent,
    so its width is that of as many squares as there are pictures.
    """
    figure = estimate_figure(kernel_distance(one, other), count)
    wider = (len(one) / count) ** 0.5
    for end in ("low", "high"):
        figure[end] = figure["value"] + wider * (figure[end] - figure["value"])
    return figure


def embed_squares(loaded: Loaded, pictures: Float[Tensor, "N C H W"]) -> Float[Tensor, "M E"]:
    """Embeddings of the squares of pictures that are as large as the pictures of the CLIP."""
    assert loaded.transform is not None
    side = min(loaded.transform.size, pictures.shape[2])  # type: ignore[union-attr]
    count = pictures.shape[2] // side
    squares = pictures[:, :, : count * side, : count * side].expand(-1, 3, -1, -1)
    squares = squares.unflatten(3, (count, side)).unflatten(2, (count, side))
    squares = squares.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    device = next(loaded.model.parameters()).device
    rows = []
    for part in squares.split(64):
        ready: Tensor = loaded.transform(to_pictures(part))  # type: ignore[misc,assignment,arg-type]
        with torch.inference_mode():
            rows.append(loaded.model.embed_image(ready.to(device)).cpu())  # type: ignore[operator]
    return torch.cat(rows)


def take_large(source: Source, count: int) -> Float[Tensor, "N C H W"]:
    """`count` pictures of a source, or as many as there are, in [-1, 1]."""
    first, length = first_picture(source), source.info.length
    picture: Tensor = take(source, range(first, first + min(count, length or count)))["image"]
    return picture


def require_fitting(networks: Sequence[Upsampler], other: Upsampler, name: str) -> None:
    """ValueError unless another upsampler does what the first one does."""
    sides = [(each.config.small, each.config.size) for each in (networks[0], other)]
    if sides[0] != sides[1]:
        raise ValueError(
            f"{name} makes {sides[1][0]} pixels {sides[1][1]}, and the first upsampler, with which "
            f"it is compared, {sides[0][0]} pixels {sides[0][1]}"
        )

"""What a request is turned into before anything is drawn: embeddings, captions, starting noise.

Dimensions: B pictures, N pictures in all, G pictures that were given, E width of embeddings, C
channels, H height, W width, S side.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.diffusion.denoiser import Conditioning
from triptych.systems.unclip import decoder
from triptych.systems.unclip.draw import encode, in_precision
from triptych.systems.unclip.embeddings import slerp, text_difference
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.request import INPUTS, UnclipPictures
from triptych.text.tokenizer import Tokenizer
from triptych.vision.given_pictures import picture_name
from triptych.vision.images import resize_crop
from triptych.vision.pixels import read_named
from triptych.weights.loaded import Loaded


class Job(NamedTuple):
    """Everything that is needed to draw the pictures of a request."""

    request: UnclipPictures
    """With its shares."""
    seeds: Sequence[int]
    """Of each picture."""
    labels: tuple[str, ...]
    title: str
    cond: Conditioning
    """The caption, one row."""
    uncond: Conditioning
    images: Float[Tensor, "N E"] | None
    """The embedding of each picture; None where the prior draws them."""
    starts: Float[Tensor, "N C H W"] | None
    """The decoder's starting noise of each picture; None where it is drawn."""
    given: UInt8[np.ndarray, "G S S C"]
    given_labels: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(request: UnclipPictures, loaded: Loaded, model: Unclip, tokenizer: Tokenizer) -> Job:
    """The job of a request, whose seed is known.

    Raises:
        ValueError: a picture cannot be read, or the model lacks a part that the request needs.
    """
    assert request.seed is not None
    with torch.inference_mode():
        empty = encode(model, tokenizer, [""])
        if request.what == "pictures":
            seeds = range(request.seed, request.seed + request.n)
            return Job(
                request,
                seeds,
                tuple(f"seed {seed}" for seed in seeds),
                request.prompt,
                encode(model, tokenizer, [request.prompt]),
                empty,
                None,
                None,
                np.empty((0, model.config.size, model.config.size, 3), np.uint8),
                (),
                _cut(tokenizer, request.prompt),
            )
        return _from_pictures(request, loaded, model, tokenizer, empty)


def _from_pictures(
    request: UnclipPictures,
    loaded: Loaded,
    model: Unclip,
    tokenizer: Tokenizer,
    empty: Conditioning,
) -> Job:
    """The job of pictures that are made from others, which have no caption."""
    names = [name for name in ("image", "second") if getattr(request, name)]
    pixels = [read_named(name, getattr(request, name), channels=3) for name in names]
    embeddings = embed_pictures(loaded, model, pixels)
    shares = request.shares or _default_shares(request, model)
    request, count = replace(request, shares=shares), len(shares) or request.n
    starts = None
    if request.what in ("interpolation", "difference", "reconstruction") or request.eta is not None:
        starts = invert_pictures(model, pixels, embeddings, empty, request)
    first, seed = embeddings[:1], request.seed or 0
    images = first.expand(count, -1)
    labels: tuple[str, ...] = tuple(f"{share:g}" for share in shares)
    seeds = [seed] * count
    if request.what == "interpolation":
        images = torch.cat([slerp(first, embeddings[1:], share) for share in shares])
        if starts is not None:
            one, other = starts.flatten(1).split(1)
            starts = torch.cat([slerp(one, other, share).view_as(starts[:1]) for share in shares])
    elif request.what == "difference":
        before, after = encode(model, tokenizer, [request.before, request.prompt])["text"].split(1)
        images = torch.cat([text_difference(first, before, after, share) for share in shares])
    elif request.what == "ladder":
        images, labels = _ladder(model, first, shares)
    elif request.what == "variations":
        seeds = [seed + i for i in range(count)]
        labels = tuple(f"seed {seed}" for seed in seeds)
    else:
        labels = ("reconstruction",)
    if starts is not None and len(starts) < count:
        starts = starts.expand(count, -1, -1, -1)
    given_names = tuple(picture_name(getattr(request, name)) for name in names)
    return Job(
        request,
        seeds,
        labels,
        _title(request, given_names),
        empty,
        empty,
        images,
        starts,
        np.stack([resize_crop(one, model.config.size) for one in pixels]),
        given_names,
        _cut(tokenizer, request.before) + _cut(tokenizer, request.prompt),
    )


def _default_shares(request: UnclipPictures, model: Unclip) -> tuple[float, ...]:
    """Those of the request's kind; a ladder has no rung twice where there are few components."""
    shares = INPUTS[request.what].shares
    if request.what != "ladder" or model.components is None:
        return shares
    most = len(model.components.directions)
    return tuple({max(1, round(share * most)): share for share in shares}.values())


def _ladder(
    model: Unclip, image: Float[Tensor, "1 E"], shares: Sequence[float]
) -> tuple[Float[Tensor, "N E"], tuple[str, ...]]:
    """The embedding by more and more of its principal components, and their numbers."""
    if model.components is None:
        raise ValueError(
            "this model has no principal components of embeddings, which a ladder needs: they are "
            "computed by `triptych train unclip`"
        )
    most = len(model.components.directions)
    counts = [max(1, round(share * most)) for share in shares]
    images = torch.cat([model.components.project(image, count) for count in counts])
    return images, tuple(f"{count} of {most}" for count in counts)


def embed_pictures(
    loaded: Loaded, model: Unclip, pixels: Sequence[UInt8[np.ndarray, "H W C"]]
) -> Float[Tensor, "B E"]:
    """The CLIP embeddings of pictures.

    Raises:
        ValueError: the model has no image tower.
    """
    if loaded.transform is None:
        return model.embed_image(torch.empty(0, 3, 1, 1))  # raises what is missing
    device = model.decoder.null_image.device
    return model.embed_image(loaded.transform(pixels).to(device))  # type: ignore[union-attr]


def invert_pictures(
    model: Unclip,
    pixels: Sequence[UInt8[np.ndarray, "H W C"]],
    images: Float[Tensor, "B E"],
    empty: Conditioning,
    request: UnclipPictures,
) -> Float[Tensor, "B C H W"]:
    """The noise from which the decoder draws these pictures by DDIM, given their embeddings."""
    size = model.config.decoder.size
    small = np.stack([resize_crop(one, size) for one in pixels])
    pictures = torch.from_numpy(small).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    caption = repeat_rows(empty, len(images))
    (cond,) = decoder.cut_padding(model.decoder.encode_condition(images, **caption))
    with in_precision(model.decoder, request) as mode, mode():
        return decoder.invert(model.decoder, pictures.to(images), cond, steps=request.steps)


def repeat_rows(cond: Conditioning, count: int) -> Conditioning:
    """A conditioning of one row for several pictures."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in cond.items()}


def _title(request: UnclipPictures, names: tuple[str, ...]) -> str:
    return {
        "variations": f"variations of {names[0]}",
        "interpolation": f"from {names[0]} to {names[-1]}",
        "difference": f"{names[0]}: from {request.before!r} to {request.prompt!r}",
        "ladder": f"{names[0]} by its first principal components",
        "reconstruction": f"{names[0]}, inverted and drawn again",
    }[request.what]


def _cut(tokenizer: Tokenizer, prompt: str) -> tuple[str, ...]:
    (lost,) = tokenizer.encode([prompt]).cut
    if not lost:
        return ()
    return (f"the prompt is longer than {tokenizer.config.length} tokens; not read: {lost!r}",)

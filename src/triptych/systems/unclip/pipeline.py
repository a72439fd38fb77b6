"""Pipeline of UnclipPictures: pictures through CLIP embeddings.

Dimensions: B pictures of a batch, N pictures of the request, E width of embeddings, C channels, H
height, W width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from triptych import runtime
from triptych.diffusion.noise import PictureNoise
from triptych.systems.unclip.draw import Drawn, draw_embeddings, draw_pictures, encode
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.text.tokenizer import Tokenizer
from triptych.vision.given_pictures import picture_name
from triptych.vision.images import to_pictures
from triptych.vision.pixels import read_named, to_pil
from triptych.weights.loaded import Load, Loaded

BATCH_PIXELS = 1 << 20  # of a batch
MAX_BATCH = 64


@dataclass(frozen=True)
class UnclipDrawing:
    """The pictures so far; the last item has all of them."""

    request: UnclipPictures
    """With the seed that was used."""
    pictures: UInt8[np.ndarray, "N H W C"]
    labels: tuple[str, ...]
    """What each picture is, such as its seed."""
    title: str = ""
    done: float = 1.0
    """The share of the work that is done."""
    notes: tuple[str, ...] = ()
    """For the user, such as which part of a prompt was not read."""

    @property
    def images(self) -> list[Image]:
        """The pictures as PIL's."""
        return to_pil(self.pictures)


def run(request: UnclipPictures, load: Load) -> Iterator[UnclipDrawing]:
    """Draw the pictures in batches; yields after each step.

    Raises:
        ValueError: the model is of another kind, or lacks a part that the request needs, or a
            picture cannot be read.
    """
    loaded = load(request.model, runtime.device())
    model, tokenizer = require_unclip(loaded)
    if request.seed is None:
        request = replace(request, seed=runtime.drawn_seed())
    assert request.seed is not None
    given = embed_picture(loaded, request) if request.image else None
    notes = _cut(tokenizer, request.prompt)
    title = request.prompt or f"variations of {picture_name(request.image)}"
    config, size = model.config, model.config.size
    done = np.empty((0, size, size, config.decoder.channels), np.uint8)
    labels = tuple(f"seed {request.seed + i}" for i in range(request.n))
    batch = 1 if request.deterministic else max(1, min(MAX_BATCH, BATCH_PIXELS // size**2))
    for start in range(0, request.n, batch):
        rows = range(start, min(start + batch, request.n))
        seeds = [request.seed + i for i in rows]
        drawn = None
        for drawn in _without_gradients(_draw(model, tokenizer, request, seeds, given)):
            share = (start + drawn.share * len(rows)) / request.n
            yield UnclipDrawing(request, done, labels[: len(done)], title, share, notes)
        assert drawn is not None and drawn.images is not None
        done = np.concatenate([done, to_pictures(drawn.images.float().cpu())])
        yield UnclipDrawing(request, done, labels[: rows.stop], title, rows.stop / request.n, notes)


def _draw(
    model: Unclip,
    tokenizer: Tokenizer,
    request: UnclipPictures,
    seeds: Sequence[int],
    given: Float[Tensor, "1 E"] | None,
) -> Iterator[Drawn]:
    """One batch. With an embedding that is given, pictures have no caption."""
    noise, count = PictureNoise(seeds), len(seeds)
    cond = {
        name: value.expand(count, *value.shape[1:])
        for name, value in encode(model, tokenizer, [request.prompt]).items()
    }
    uncond = {
        name: value.expand(count, *value.shape[1:])
        for name, value in encode(model, tokenizer, [""]).items()
    }
    prior_share = 0.0
    if given is None:
        prior_share = 0.2 if request.prior != "none" else 0.0
        embeddings = draw_embeddings(model, cond, uncond, noise, request)
        while True:
            try:
                yield Drawn(prior_share * next(embeddings), None)
            except StopIteration as finished:
                image = finished.value
                break
    else:
        image = given.expand(count, -1)
    for drawn in draw_pictures(model, image, cond, uncond, noise, request):
        yield Drawn(prior_share + (1 - prior_share) * drawn.share, drawn.images)


def _without_gradients(work: Iterator[Drawn]) -> Iterator[Drawn]:
    """The same items. The mode is entered anew for each: left open over a yield it would apply to
    the caller.
    """
    while True:
        with torch.inference_mode():
            item = next(work, None)
        if item is None:
            return
        yield item


def require_unclip(loaded: Loaded) -> tuple[Unclip, Tokenizer]:
    """The model and its tokenizer.

    Raises:
        ValueError: it is a model of another kind, or has no vocabulary.
    """
    if not isinstance(loaded.model, Unclip):
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}, which draws nothing from CLIP embeddings: "
            "give a run of `triptych train unclip`, or a Karlo"
        )
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.name} has no vocabulary: its tokenizer.json is missing")
    return loaded.model, loaded.tokenizer


def embed_picture(loaded: Loaded, request: UnclipPictures) -> Float[Tensor, "1 E"]:
    """The CLIP embedding of the request's picture.

    Raises:
        ValueError: the picture cannot be read, or the model has no image tower.
    """
    model, _ = require_unclip(loaded)
    pixels = read_named("image", request.image, channels=3)
    device = model.decoder.null_image.device
    with torch.inference_mode():
        if loaded.transform is None:
            return model.embed_image(torch.empty(0))  # raises what is missing
        return model.embed_image(loaded.transform([pixels]).to(device))  # type: ignore[union-attr]


def _cut(tokenizer: Tokenizer, prompt: str) -> tuple[str, ...]:
    (lost,) = tokenizer.encode([prompt]).cut
    if not lost:
        return ()
    return (f"the prompt is longer than {tokenizer.config.length} tokens; not read: {lost!r}",)

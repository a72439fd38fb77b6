"""Pipeline of UnclipPictures: pictures through CLIP embeddings.

Dimensions: B pictures of a batch, N pictures of the request, G pictures that were given, E width of
embeddings, C channels, H height, W width, S side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor

from triptych import runtime
from triptych.diffusion.noise import PictureNoise
from triptych.systems.unclip.draw import draw_embeddings, draw_pictures, without_gradients
from triptych.systems.unclip.inputs import Job, prepare, repeat_rows
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.text.tokenizer import Tokenizer
from triptych.vision.images import to_pictures
from triptych.vision.pixels import to_pil
from triptych.weights.loaded import Load, Loaded

BATCH_PIXELS = 1 << 20  # of a batch
MAX_BATCH = 64
PRIOR_SHARE = 0.2  # of the work of a picture, for the progress bar
NONE = np.empty((0, 1, 1, 3), np.uint8)


@dataclass(frozen=True)
class UnclipDrawing:
    """The pictures so far; the last item has all of them."""

    request: UnclipPictures
    """With the seed that was used."""
    pictures: UInt8[np.ndarray, "N H W C"]
    labels: tuple[str, ...]
    """What each picture is, such as its seed or its share."""
    title: str = ""
    given: UInt8[np.ndarray, "G H W C"] = field(default_factory=lambda: NONE)
    """The pictures that these are made from, at their size."""
    given_labels: tuple[str, ...] = ()
    done: float = 1.0
    """The share of the work that is done."""
    notes: tuple[str, ...] = ()
    """For the user, such as which part of a prompt was not read."""

    @property
    def images(self) -> list[Image]:
        """The pictures as PIL's."""
        return to_pil(self.pictures)

    def request_of(self, number: int) -> UnclipPictures:
        """The request that draws picture `number` alone."""
        assert self.request.seed is not None
        if self.request.shares:
            return replace(self.request, shares=(self.request.shares[number],))
        return replace(self.request, seed=self.request.seed + number, n=1)


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
    job = prepare(request, loaded, model, tokenizer)
    request, size = job.request, model.config.size
    item = UnclipDrawing(
        request,
        np.empty((0, size, size, model.config.decoder.channels), np.uint8),
        (),
        job.title,
        job.given,
        job.given_labels,
        0.0,
        job.notes,
    )
    count = len(job.seeds)
    batch = 1 if request.deterministic else max(1, min(MAX_BATCH, BATCH_PIXELS // size**2))
    for start in range(0, count, batch):
        rows = range(start, min(start + batch, count))
        images = torch.empty(0)
        for share, drawn in without_gradients(_draw(model, job, rows)):
            images = images if drawn is None else drawn
            yield replace(item, done=(start + share * len(rows)) / count)
        pictures = np.concatenate([item.pictures, to_pictures(images.float().cpu())])
        item = replace(item, pictures=pictures, labels=job.labels[: rows.stop])
        yield replace(item, done=rows.stop / count)


def _draw(model: Unclip, job: Job, rows: range) -> Iterator[tuple[float, Tensor | None]]:
    """One batch, as the share of its work that is done, and the pictures once there are any."""
    noise = PictureNoise([job.seeds[row] for row in rows])
    cond, uncond = (repeat_rows(each, len(rows)) for each in (job.cond, job.uncond))
    before = 0.0
    if job.images is None:
        before = PRIOR_SHARE if job.request.prior != "none" else 0.0
        embeddings = draw_embeddings(model, cond, uncond, noise, job.request)
        while True:
            try:
                yield before * next(embeddings), None
            except StopIteration as finished:
                image = finished.value
                break
    else:
        image = job.images[rows.start : rows.stop]
    start = None if job.starts is None else job.starts[rows.start : rows.stop]
    steps = draw_pictures(model, image, cond, uncond, noise, job.request, start)
    for share, images in steps:
        yield before + (1 - before) * share, images


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

"""Detect: boxes around what labels name, from a model that only ever saw pictures with texts.

Three ways to one heat map a label: each window of the picture embedded by itself, the same windows
many at once, or the patches of one pass a scale. What is scored, a window or a patch, competes for:
its score is the share of a label among all labels and some texts that describe nothing. Peaks of
the heat map become boxes.

Dimensions: H height, W width, L labels, K background texts, E width of the shared space, N windows
or patches, h w cells of a heat map.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.systems.clip.model import ClipConfig
from triptych.systems.detection import dense, heatmaps, windows
from triptych.systems.detection.heatmaps import Found
from triptych.systems.detection.request import Detect
from triptych.systems.siglip.model import SiglipConfig
from triptych.systems.two_towers.labels import average_prompts, label_prompts
from triptych.text.templates import TEMPLATES
from triptych.vision.images import open_picture
from triptych.weights.loaded import TWO_TOWERS, Load, Loaded

FINEST = 160
"""Cells of a heat map along the picture's longer side, or its pixels where they are fewer."""
TOGETHER = 64
"""Windows that go through the tower at once."""
EXTENT = {"dense": 0.65, "window": 0.85, "window-batched": 0.85}
"""Windows smear: what stands in many of them fades over their width, so boxes end higher up."""
RESNET_STRIDE = 32
"""Pixels a side of what one place of the modified ResNet's last planes stands for."""


@dataclass(frozen=True)
class Detections:
    """What was found so far; only the last one that is yielded has boxes."""

    request: Detect
    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    found: Found
    """Relative boxes, best first, their scores, and each one's place among the labels."""
    heat: Float[Tensor, "L h w"]
    """A score in [0, 1] everywhere in the picture, for every label."""
    done: float = 1.0
    """The share of the work that is done."""

    @property
    def names(self) -> tuple[str, ...]:
        """The label of every box."""
        return tuple(self.request.labels[number] for number in self.found.labels.tolist())


@dataclass(frozen=True)
class Queries:
    """Labels and background as the model reads them."""

    labels: Float[Tensor, "L E"]
    background: Float[Tensor, "K E"]


def run(request: Detect, load: Load) -> Iterator[Detections]:
    """Detect in the picture file of a request; the last item has the boxes.

    Raises:
        ValueError: the model is no CLIP or SigLIP, there is no sound picture, or numbers of the
            request do not fit it.
    """
    try:
        picture = open_picture(Path(request.picture), channels=3)
    except ValueError as error:
        raise ValueError(f"{request.picture}: {error}") from None
    loaded = load(request.model, runtime.device())
    yield from detect(request, loaded, picture)


def detect(
    request: Detect,
    loaded: Loaded,
    picture: UInt8[np.ndarray, "H W C"],
    queries: Queries | None = None,
) -> Iterator[Detections]:
    """Detect in a picture at hand; `queries` spares embedding the labels again.

    Raises:
        ValueError: as `run`.
    """
    if loaded.card.model not in TWO_TOWERS or loaded.transform is None:
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}: detecting needs a CLIP or SigLIP, which "
            "brings pictures and labels into one space"
        )
    queries = queries or embed_queries(request, loaded)
    height, width = picture.shape[:2]
    nothing = Found(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    cold = torch.zeros(len(request.labels), 1, 1)
    scoring = (_dense if request.method == "dense" else _windows)(request, loaded, picture, queries)
    while True:
        try:
            done = next(scoring)
        except StopIteration as stop:
            heat: Tensor = stop.value
            break
        yield Detections(request, (height, width), nothing, cold, done)
    heat = heat if request.contrast else heatmaps.stretched(heat)
    extent = request.extent or EXTENT[request.method]
    found = heatmaps.found(heat, request.threshold, extent, request.nms, request.limit)
    yield Detections(request, (height, width), found, heat)


def embed_queries(request: Detect, loaded: Loaded) -> Queries:
    """The labels, each the average of its sentences, and the background texts as they are."""
    sentences: list[str] = []
    for name in request.templates:
        sentences += TEMPLATES.get(name, (name,))
    texts = label_prompts(request.labels, sentences)
    embedded = loaded.embed_text([*texts, *request.background])
    labels = average_prompts(embedded[: len(texts)], len(sentences))
    return Queries(labels, embedded[len(texts) :])


def scores(
    request: Detect, loaded: Loaded, vectors: Float[Tensor, "N E"], queries: Queries
) -> Float[Tensor, "N L"]:
    """How well each vector fits each label: its share of the softmax at the model's temperature
    over labels and background, or the cosine.
    """
    if not request.contrast:
        return vectors @ queries.labels.T
    texts = torch.cat([queries.labels, queries.background])
    with torch.inference_mode():
        device = next(loaded.model.parameters()).device
        logits: Tensor = loaded.model.logits(vectors.to(device), texts.to(device))  # type: ignore[operator]
        return logits.float().softmax(-1)[:, : len(queries.labels)].cpu()


def _windows(
    request: Detect, loaded: Loaded, picture: UInt8[np.ndarray, "H W C"], queries: Queries
) -> Generator[float, None, Float[Tensor, "L h w"]]:
    """Yields the share of windows that are done; returns the heat map."""
    height, width = picture.shape[:2]
    plan = windows.plan(
        height,
        width,
        model_size(loaded),
        patch=request.patch,
        windows=request.windows,
        stride=request.stride,
    )
    size = 1 if request.method == "window" else TOGETHER
    rows: list[Tensor] = []
    for number, crops in enumerate(windows.batches(plan, picture, size)):
        yield min(1.0, number * size / len(plan))
        rows.append(scores(request, loaded, loaded.embed_image(crops, size), queries))
    patches = windows.averaged(plan, torch.cat(rows))
    return heatmaps.regular(patches, windows.edges(plan), (height, width), cells(height, width))


def _dense(
    request: Detect, loaded: Loaded, picture: UInt8[np.ndarray, "H W C"], queries: Queries
) -> Generator[float, None, Float[Tensor, "L h w"]]:
    """Yields the share of passes that are done; returns the mean of their heat maps."""
    assert loaded.transform is not None
    height, width = picture.shape[:2]
    sizes = dense.passes(height, width, model_size(loaded), patch_size(loaded), request.scales)
    weight = next(loaded.model.get_submodule("image").parameters())
    fine = cells(height, width)
    heat = torch.zeros(len(request.labels), *fine)
    reach = None if request.reach < 0 else request.reach
    for number, size in enumerate(sizes):
        yield number / len(sizes)
        pixels = dense.pixels(picture, size, loaded.transform)
        with torch.inference_mode():
            vectors = loaded.model.patches(pixels.to(weight), reach)[0].cpu()  # type: ignore[operator]
        vectors = dense.pooled(vectors, request.pool)
        table = scores(request, loaded, vectors.flatten(0, 1), queries)
        table = table.T.reshape(-1, *vectors.shape[:2])  # (L, h, w)
        edges = size.edges(height, width)
        heat += heatmaps.regular(table, edges, (height, width), fine)
    return heat / len(sizes)


def cells(height: int, width: int) -> tuple[int, int]:
    """Cells of the heat map of a picture, down and across."""
    ratio = min(1.0, FINEST / max(height, width))
    return max(1, round(ratio * height)), max(1, round(ratio * width))


def model_size(loaded: Loaded) -> int:
    """Pixels of a side of the pictures that the model was trained on."""
    settings = _settings(loaded)
    return settings.size


def patch_size(loaded: Loaded) -> int:
    """Pixels of a side of what one patch of the image tower sees."""
    settings = _settings(loaded)
    if isinstance(settings, SiglipConfig):
        return settings.image.patch
    return settings.vit.patch if settings.vit is not None else RESNET_STRIDE


def _settings(loaded: Loaded) -> ClipConfig | SiglipConfig:
    if not isinstance(loaded.config, ClipConfig | SiglipConfig):
        raise ValueError(f"{loaded.name}: a {loaded.card.model} without its configuration")
    return loaded.config

"""Detect: boxes of objects that labels name, from a model of pictures and texts alone.

Each label gets a heat map by one of three methods: windows of the picture embedded one at a time,
the same windows in batches, or the patches of one pass per scale. The score of a window or patch is
the label's share of a softmax over all labels and some background texts. Peaks become boxes.

Dimensions: H height, W width, L labels, K background texts, E width of the shared space, N windows
or patches, h w cells of a heat map.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.systems.clip.model import ClipConfig
from triptych.systems.detection import dense, heatmaps, windows
from triptych.systems.detection.heatmaps import ScoredBoxes
from triptych.systems.detection.request import Detect
from triptych.systems.siglip.model import SiglipConfig
from triptych.systems.two_towers.labels import average_prompts, label_prompts
from triptych.text.templates import TEMPLATES
from triptych.vision.pixels import read_picture
from triptych.weights.loaded import TWO_TOWERS, Load, Loaded

CELLS = 160
"""Most cells of a heat map along the picture's longer side; never more than its pixels."""
BATCH = 64
"""Windows in a batch."""
EXTENT = {"dense": 0.65, "window": 0.85, "window-batched": 0.85}
"""Windows blur the heat map over their width, so their boxes end at a higher share of the peak."""
RESNET_STRIDE = 32
"""Pixels per side of one cell of the modified ResNet's last feature map."""


@dataclass(frozen=True)
class Detections:
    """The state of a detection; only the last item has boxes."""

    request: Detect
    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    boxes: ScoredBoxes
    """Best first; their labels are indices of the request's labels."""
    heat: Float[Tensor, "L h w"]
    """Scores in [0, 1], a map for every label."""
    done: float = 1.0
    """The share of the work that is done."""

    @property
    def names(self) -> tuple[str, ...]:
        """The label of every box."""
        return tuple(self.request.labels[number] for number in self.boxes.labels.tolist())


@dataclass(frozen=True)
class Queries:
    """Embeddings of labels and background texts."""

    labels: Float[Tensor, "L E"]
    background: Float[Tensor, "K E"]


def run(request: Detect, load: Load) -> Iterator[Detections]:
    """Detect objects in the picture file of a request; the last item has the boxes.

    Raises:
        ValueError: the model is not a CLIP or SigLIP, the file is not a valid picture, or patches
            or scales do not fit the picture.
    """
    if not request.picture:
        raise ValueError("picture: give one to look at")
    try:
        picture = read_picture("picture", request.picture, channels=3)
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
    """Detect objects in a picture; `queries` saves embedding the labels again.

    Raises:
        ValueError: as `run`.
    """
    if loaded.card.model not in TWO_TOWERS or loaded.transform is None:
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}: detection needs a CLIP or SigLIP, "
            "which embeds pictures and labels in one space"
        )
    queries = queries or embed_queries(request, loaded)
    height, width = picture.shape[:2]
    no_boxes = ScoredBoxes(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    no_heat = torch.zeros(len(request.labels), 1, 1)
    scoring = (_dense if request.method == "dense" else _windows)(request, loaded, picture, queries)
    while True:
        try:
            done = next(scoring)
        except StopIteration as stop:
            heat: Tensor = stop.value
            break
        yield Detections(request, (height, width), no_boxes, no_heat, done)
    heat = heat if request.contrast else heatmaps.stretch(heat)
    extent = request.extent or EXTENT[request.method]
    boxes = heatmaps.find_boxes(heat, request.threshold, extent, request.nms, request.limit)
    yield Detections(request, (height, width), boxes, heat)


def embed_queries(request: Detect, loaded: Loaded) -> Queries:
    """Embed the labels, each as the mean of its templates, and the background texts unchanged."""
    sentences: list[str] = []
    for name in request.templates:
        sentences += TEMPLATES.get(name, (name,))
    texts = label_prompts(request.labels, sentences)
    embedded = loaded.embed_text([*texts, *request.background])
    labels = average_prompts(embedded[: len(texts)], len(sentences))
    return Queries(labels, embedded[len(texts) :])


def score_vectors(
    request: Detect, loaded: Loaded, vectors: Float[Tensor, "N E"], queries: Queries
) -> Float[Tensor, "N L"]:
    """Scores of vectors for labels: the softmax over labels and background at the model's
    temperature, or the cosine where the request is without contrast.
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
    """Yield the share of windows that are done; return the heat maps."""
    height, width = picture.shape[:2]
    plan = windows.plan_windows(
        height,
        width,
        model_size(loaded),
        patch=request.patch,
        windows=request.windows,
        stride=request.stride,
    )
    size = 1 if request.method == "window" else BATCH
    rows: list[Tensor] = []
    for number, crops in enumerate(windows.batch_crops(plan, picture, size)):
        yield min(1.0, number * size / len(plan))
        rows.append(score_vectors(request, loaded, loaded.embed_image(crops, size), queries))
    patches = windows.average_windows(plan, torch.cat(rows))
    return heatmaps.resample(
        patches, windows.patch_edges(plan), (height, width), heat_map_size(height, width)
    )


def _dense(
    request: Detect, loaded: Loaded, picture: UInt8[np.ndarray, "H W C"], queries: Queries
) -> Generator[float, None, Float[Tensor, "L h w"]]:
    """Yield the share of passes that are done; return the mean of their heat maps."""
    assert loaded.transform is not None
    height, width = picture.shape[:2]
    sizes = dense.plan_passes(height, width, model_size(loaded), patch_size(loaded), request.scales)
    weight = next(loaded.model.get_submodule("image").parameters())
    shape = heat_map_size(height, width)
    heat = torch.zeros(len(request.labels), *shape)
    reach = None if request.reach < 0 else request.reach
    for number, size in enumerate(sizes):
        yield number / len(sizes)
        pixels = dense.prepare_pixels(picture, size, loaded.transform)
        with torch.inference_mode():
            vectors = loaded.model.patches(pixels.to(weight), reach)[0].cpu()  # type: ignore[operator]
        vectors = dense.pool_neighbours(vectors, request.pool)
        table = score_vectors(request, loaded, vectors.flatten(0, 1), queries)
        table = table.T.reshape(-1, *vectors.shape[:2])  # (L, h, w)
        edges = size.edges(height, width)
        heat += heatmaps.resample(table, edges, (height, width), shape)
    return heat / len(sizes)


def heat_map_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the heat map of a picture, in cells."""
    ratio = min(1.0, CELLS / max(height, width))
    return max(1, round(ratio * height)), max(1, round(ratio * width))


def model_size(loaded: Loaded) -> int:
    """Side of the model's input in pixels."""
    return _config(loaded).size


def patch_size(loaded: Loaded) -> int:
    """Side of a patch of the image tower in pixels."""
    config = _config(loaded)
    if isinstance(config, SiglipConfig):
        return config.image.patch
    return config.vit.patch if config.vit is not None else RESNET_STRIDE


def _config(loaded: Loaded) -> ClipConfig | SiglipConfig:
    if not isinstance(loaded.config, ClipConfig | SiglipConfig):
        raise ValueError(f"{loaded.name} is a {loaded.card.model} without a configuration")
    return loaded.config

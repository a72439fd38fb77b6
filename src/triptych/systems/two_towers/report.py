"""A CLIP or SigLIP on held-out pictures of its own source: recall both ways, zero-shot accuracy.

Dimensions: N pictures, M texts, D width of the shared space.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.data.captions import captions_of, spoken
from triptych.data.order.batches import take
from triptych.data.source import Source
from triptych.scores.accuracy import Accuracy, accuracy
from triptych.systems.two_towers.labels import embed_labels
from triptych.systems.two_towers.retrieval import Recall, recall
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Loaded

CHUNK = 100


@dataclass(frozen=True)
class TwoTowersReport:
    """What two towers make of held-out pictures; None for what the source cannot ask."""

    pictures: int
    recall: Recall | None
    """Of captions. Pictures of one caption are told apart by nothing, and count as missed."""
    zero_shot: Accuracy | None
    """Accuracy over the classes of the source, named in the sentences of `templates`."""
    templates: tuple[str, ...] = ()


def evaluate_two_towers(
    loaded: Loaded, test: Source, templates: tuple[str, ...], limit: int = 1000
) -> TwoTowersReport:
    """Recall and zero-shot accuracy on the first `limit` pictures of a split.

    Raises:
        ValueError: the source has neither captions nor classes.
    """
    info = test.info
    count = min(limit, info.length or limit)
    classes = len(info.classes) > 1
    if not info.has_captions and not classes:
        raise ValueError(f"{info.name!r} has neither captions nor classes: nothing can be asked")
    pictures, labels = embedded(loaded, test, count)
    found, named = None, None
    if info.has_captions:
        texts = captions_of(test, count)
        owner = torch.tensor([i for i, several in enumerate(texts) for _ in several])
        vectors = loaded.embed_text([text for several in texts for text in several])
        found = recall(pictures, vectors, owner)
    if classes and labels is not None:
        text = embed_labels(loaded, [spoken(name) for name in info.classes], templates).text
        named = accuracy((pictures @ text.T).argmax(1), labels)
    return TwoTowersReport(count, found, named, templates if named else ())


@torch.inference_mode()
def embedded(
    loaded: Loaded, source: Source, count: int
) -> tuple[Float[Tensor, "N D"], Tensor | None]:
    """The first pictures of a source in the shared space, and their labels where it has them."""
    assert isinstance(loaded.transform, ImageTransform)
    weight = next(loaded.model.get_submodule("image").parameters())
    vectors, labels = [], []
    for start in range(0, count, CHUNK):
        batch = take(source, range(start, min(start + CHUNK, count)))
        image = loaded.transform.normalise(batch["image"].expand(-1, 3, -1, -1))
        vectors.append(loaded.model.embed_image(image.to(weight)).cpu())  # type: ignore[operator]
        if "label" in batch:
            labels.append(batch["label"])
    return torch.cat(vectors), torch.cat(labels) if labels else None

"""A CLIP or SigLIP on held-out pictures of its own source: recall both ways, zero-shot accuracy."""

from dataclasses import dataclass

import torch

from triptych.data.captions import captions_of, spoken
from triptych.data.source import Source
from triptych.scores.accuracy import Accuracy, accuracy
from triptych.systems.two_towers.labels import embed_labels
from triptych.systems.two_towers.matching import embed_source
from triptych.systems.two_towers.retrieval import Recall, recall
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Loaded


@dataclass(frozen=True)
class TwoTowersReport:
    """Scores on held-out pictures; None for what the source has no truth for."""

    pictures: int
    recall: Recall | None
    """Of captions. Pictures that share a caption compete with each other: recall stays below 1."""
    zero_shot: Accuracy | None
    """Accuracy over the classes of the source, put into the `templates`."""
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
        raise ValueError(
            f"{info.name!r} has neither captions nor classes to compare with: evaluate on a "
            "source that has"
        )
    assert isinstance(loaded.transform, ImageTransform)
    image, labels, _ = embed_source(loaded.model, loaded.transform, test, count)
    found, named = None, None
    if info.has_captions:
        texts = captions_of(test, count)
        owner = torch.tensor([i for i, several in enumerate(texts) for _ in several])
        vectors = loaded.embed_text([text for several in texts for text in several])
        found = recall(image, vectors, owner)
    if classes and labels is not None:
        text = embed_labels(loaded, [spoken(name) for name in info.classes], templates).text
        named = accuracy((image @ text.T).argmax(1), labels)
    return TwoTowersReport(count, found, named, templates if named else ())

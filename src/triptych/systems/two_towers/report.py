"""A CLIP or SigLIP on held-out pictures of its own source: recall both ways, zero-shot accuracy."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from triptych.config import write_json
from triptych.data.captions import captions_of, class_words
from triptych.data.source import Source
from triptych.fields import to_json
from triptych.scores.accuracy import Accuracy, accuracy
from triptych.scores.environment import environment
from triptych.systems.two_towers.labels import embed_labels
from triptych.systems.two_towers.matching import embed_source
from triptych.systems.two_towers.request import TrainClip, TrainSiglip
from triptych.systems.two_towers.retrieval import Recall, recall
from triptych.text.templates import TEMPLATES
from triptych.train.evaluation import TrainedRun
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
        text = embed_labels(loaded, [class_words(name) for name in info.classes], templates).text
        named = accuracy((image @ text.T).argmax(1), labels)
    return TwoTowersReport(count, found, named, templates if named else ())


def evaluate(options: None, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Recall and zero-shot accuracy of a run; yields messages and returns the figures."""
    assert isinstance(run.request, TrainClip | TrainSiglip)
    templates = TEMPLATES[run.request.towers.templates]
    report = evaluate_two_towers(run.loaded, run.test, templates)
    figures: dict[str, Any] = to_json(report)
    write_json(run.folder / "towers.json", {"environment": environment(run.command)} | figures)
    if report.zero_shot is not None:
        named = report.zero_shot
        interval = f"{named.value:.1%} ({named.low:.1%} to {named.high:.1%})"
        yield f"zero-shot accuracy over the classes {interval}, chance {named.chance:.1%}"
    if report.recall is not None:
        for what, found in (
            ("a picture by its text", report.recall.text_to_image),
            ("a text by its picture", report.recall.image_to_text),
        ):
            shares = ", ".join(f"@{k} {share:.1%}" for k, share in found.at.items())
            yield (
                f"recall of {what} among {found.among:,}: {shares}, chance @1 {found.chance[1]:.2%}"
            )
    return {"towers": figures}

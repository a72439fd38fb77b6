"""The labels of pictures as plain values."""

from pathlib import Path
from typing import Any

from triptych.system import Answer
from triptych.systems.classification.pipeline import Classified


def to_answer(item: Classified, model: str) -> Answer:
    """All labels of each picture, best first, and the settings behind the numbers."""
    return Answer(rank_labels(item, len(item.labels)) | {"model": model})


def rank_labels(result: Classified, top: int) -> dict[str, Any]:
    """The `top` labels of each picture, best first, with cosine and probability."""
    cosines, probabilities = result.cosines(), result.probabilities()
    order = cosines.argsort(dim=1, descending=True, stable=True)[:, :top]
    rows = []
    for name, row, cosine, probability in zip(
        result.names, order.tolist(), cosines.tolist(), probabilities.tolist(), strict=True
    ):
        fits = [
            {"label": result.labels[i], "cosine": cosine[i], "probability": probability[i]}
            for i in row
        ]
        rows.append({"file": name, "labels": fits})
    return describe(result) | {"pictures": rows}


def describe(result: Classified) -> dict[str, Any]:
    """The settings behind the numbers."""
    return {
        "model": Path(result.request.model).name,
        "reads": result.reads,
        "scale": result.scale,
        "bias": result.bias,
        "templates": result.templates,
        "labels": result.labels,
        "skipped": [{"name": name, "reason": why} for name, why in result.skipped.items()],
        "cut": [{"prompt": prompt, "lost": end} for prompt, end in result.cut.items()],
    }

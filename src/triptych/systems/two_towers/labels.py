"""Labels as vectors of the shared space: each is the mean of its prompts.

Dimensions: L labels, K templates, E width of the shared space.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych.text.templates import prompts
from triptych.weights.loaded import Loaded, require_tokenizer

PROMPTS_AT_ONCE = 1024  # a thousand classes in 80 templates would be gigabytes of activations


class Labels(NamedTuple):
    """Labels in the shared space."""

    text: Float[Tensor, "L E"]
    cut: dict[str, str]  # prompts that were too long, with the end that the model does not see


def embed_labels(
    loaded: Loaded,
    labels: Sequence[str],
    templates: Sequence[str],
    *,
    at_once: int = PROMPTS_AT_ONCE,
) -> Labels:
    """One unit vector per label.

    Raises:
        ValueError: the model reads no text, or two labels have the same tokens.
    """
    tokenizer = require_tokenizer(loaded)
    step = max(1, at_once // len(templates))
    rows: list[Tensor] = []
    cut: dict[str, str] = {}
    label_of: dict[bytes, str] = {}
    for start in range(0, len(labels), step):
        chosen = labels[start : start + step]
        texts = label_prompts(chosen, templates)
        tokens, _, lost = tokenizer.encode(texts)
        cut |= {text: end for text, end in zip(texts, lost, strict=True) if end}
        for label, row in zip(chosen, tokens.numpy().reshape(len(chosen), -1), strict=True):
            twin = label_of.setdefault(row.tobytes(), label)
            if twin is not label:
                raise ValueError(
                    f"the labels {twin!r} and {label!r} have the same tokens in {loaded.name}: "
                    "leave one out"
                )
        rows.append(average_prompts(loaded.embed_text(texts), len(templates)))
    return Labels(torch.cat(rows), cut)


def label_prompts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of the first label, then those of the second, and so on: L K texts."""
    return [prompt for label in labels for prompt in prompts(label, templates)]


def average_prompts(vectors: Float[Tensor, "N E"], templates: int) -> Float[Tensor, "L E"]:
    """The mean of each label's K prompts, scaled to unit length; N = L K, as in `label_prompts`.

    Averaged in the shared space, not over predictions (arXiv:2103.00020, section 3.1.4), so that
    many templates cost nothing once the labels are embedded.
    """
    return F.normalize(vectors.unflatten(0, (-1, templates)).mean(1), dim=-1)

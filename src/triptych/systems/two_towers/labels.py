"""Labels, embed_labels, TOGETHER."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych.text.templates import prompts
from triptych.weights.loaded import Loaded, require_tokenizer

TOGETHER = 1024  # prompts that are held as tokens at a time


class Labels(NamedTuple):
    """Labels in the shared space."""

    text: Float[Tensor, "L E"]
    cut: dict[str, str]  # prompts that were too long, with what was lost of each


def embed_labels(loaded: Loaded, labels: Sequence[str], templates: Sequence[str]) -> Labels:
    """Each label as the mean of the unit vectors of its prompts, again of unit length.

    Averaged in the shared space, not over predictions (section 3.1.4), so that many templates cost
    nothing once the labels are embedded.

    Raises:
        ValueError: the model reads no text, or two labels are the same to it.
    """
    tokenizer = require_tokenizer(loaded)
    step = max(1, TOGETHER // len(templates))
    rows: list[Tensor] = []
    cut: dict[str, str] = {}
    seen: dict[bytes, str] = {}
    for start in range(0, len(labels), step):
        chosen = labels[start : start + step]
        texts = [prompt for label in chosen for prompt in prompts(label, templates)]
        tokens, _, lost = tokenizer.encode(texts)
        cut |= {text: end for text, end in zip(texts, lost, strict=True) if end}
        for label, own in zip(chosen, tokens.numpy().reshape(len(chosen), -1), strict=True):
            twin = seen.setdefault(own.tobytes(), label)
            if twin is not label:
                raise ValueError(f"{twin!r} and {label!r} are the same to {loaded.name}: drop one")
        vectors = loaded.embed_text(texts).reshape(len(chosen), len(templates), -1)  # (L, K, E)
        rows.append(F.normalize(vectors.mean(dim=1), dim=-1))
    return Labels(torch.cat(rows), cut)

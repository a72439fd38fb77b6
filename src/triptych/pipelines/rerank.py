"""Order any generator's pictures by how well they fit a text: of many, show the best.

DALL-E showed the best of 512 by CLIP (arXiv:2102.12092, section 2.6).

Dimensions: N pictures.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from triptych.weights.load import Loaded


class Ranking(NamedTuple):
    """Pictures in order, by their number."""

    order: tuple[int, ...]  # the best first; of equal ones the first given
    scores: tuple[float, ...]  # cosine with the text, of each picture as given


def rerank(
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]], prompt: str, loaded: Loaded
) -> Ranking:
    """Pictures by their cosine with a text, which orders them as CLIP score and logits do.

    Raises:
        ValueError: the model is no CLIP or SigLIP, or gives a picture no finite vector.
    """
    image, text = loaded.embed_image(pictures), loaded.embed_text([prompt])
    scores = (image.double() * text.double()).sum(1).tolist()
    bad = [number for number, score in enumerate(scores) if score != score]
    if bad:
        raise ValueError(f"{loaded.name} gives no finite vector for picture {bad[0]} or the text")
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    return Ranking(tuple(order), tuple(scores))

"""Batches of pictures whose texts are alike, so that what sets them apart has to be learned.

Where every text of a batch says "red", red tells no picture from another, and a contrastive loss
has to look at the shape. Hard negatives, found by words alone: no model takes part, so an order is
a function of its texts and a key, as everything in a batch is.

Dimensions: N texts.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from triptych.data.order.permutation import mix

WORD = re.compile(r"\w+")
PLAIN = 4
"""Every so many-th pool stays in its random order: a batch of anything is to be told apart too."""


def alike(texts: Sequence[str], key: int) -> Int64[np.ndarray, " N"]:
    """An order of texts in which those that share words are neighbours.

    The key draws a rank for every word; texts are sorted by the ranks of their words, the highest
    ranked first. So one pool is sorted by colours, the next by shapes, as chance has it.
    """
    words = sorted({word for text in texts for word in WORD.findall(text.lower())})
    draws = mix(np.arange(len(words), dtype=np.uint64), key)
    rank = {
        word: int(place) for word, place in zip(words, np.argsort(np.argsort(draws)), strict=True)
    }
    keys = [tuple(sorted(rank[w] for w in set(WORD.findall(text.lower())))) for text in texts]
    return np.array(sorted(range(len(texts)), key=lambda i: (keys[i], i)), dtype=np.int64)

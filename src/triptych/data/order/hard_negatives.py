"""Hard negatives: batches of pictures with similar captions.

Where every caption of a batch says "red", red cannot tell its pictures apart, and a contrastive
loss has to use the shape. Captions are compared by their words alone, without a model, so the order
is a function of the texts and a key, like everything else in a batch.

Dimensions: N texts.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from triptych.data.order.permutation import mix

WORD = re.compile(r"\w+")
UNSORTED_EVERY = 4
"""Every fourth pool keeps its random order: unrelated pictures must be distinguished too."""


def sort_by_shared_words(texts: Sequence[str], key: int) -> Int64[np.ndarray, " N"]:
    """Indices that sort texts so that those that share words are neighbours.

    The key draws a rank for every word; a text is sorted by the ranks of its words, lowest first.
    So one pool may be sorted by colours, the next by shapes.
    """
    words = sorted({word for text in texts for word in WORD.findall(text.lower())})
    draws = mix(np.arange(len(words), dtype=np.uint64), key)
    rank = {
        word: int(place) for word, place in zip(words, np.argsort(np.argsort(draws)), strict=True)
    }
    keys = [tuple(sorted(rank[w] for w in set(WORD.findall(text.lower())))) for text in texts]
    return np.array(sorted(range(len(texts)), key=lambda i: (keys[i], i)), dtype=np.int64)

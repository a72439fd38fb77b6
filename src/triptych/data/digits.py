"""The 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part):
grey values are counts from 0 to 16. There is no official split; ours is a fixed random one.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from triptych.data.disk.arrays import Part, array_index
from triptych.data.disk.index import Index
from triptych.data.order.permutation import permute
from triptych.runtime import key

TEST = 297  # leaves 1,500 for training


def digits_index() -> Index:
    """All digits, 1,500 for training and 297 for testing. ValueError without scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the handwritten digits come with scikit-learn: pip install 'triptych[evaluation]'"
        )
    # Read the file itself: importing scikit-learn for `load_digits` takes seconds.
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)  # 64 counts and the digit
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64]
    order = permute(np.arange(len(images)), len(images), key("digits", "held out"))
    test, train = np.sort(order[:TEST]), np.sort(order[TEST:])
    parts = [Part("train", images[train], labels[train]), Part("test", images[test], labels[test])]
    return array_index("digits", "handwritten digits of scikit-learn", parts)

"""Bounds of what a file of weights may contain, the same for every form of file."""

from collections.abc import Sequence
from typing import Any

MAX_TENSORS = 100_000
"""In a file or an index; DeepSeek-V3, one of the largest, has 92,000 in 163 files."""
MAX_HEADER = 16 << 20
"""Bytes of names and shapes: a header, an index, or a pickle. Those of Stable Diffusion have 1 MB
with the state of an optimizer.
"""
MAX_VALUES = 1 << 42
"""Numbers of one tensor, and of its sides without those of 0."""
MAX_DIMENSIONS = 16


def read_shape(shape: Any) -> tuple[int, ...]:
    """The shape of a tensor as it stands in a file.

    Raises:
        ValueError: it is no list of whole numbers, or larger than any tensor.
    """
    if not isinstance(shape, Sequence) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"has a tensor of the shape {str(shape)[:100]}. Fetch it again")
    count = 1
    for side in shape:
        if type(side) is not int or side < 0 or (count := count * max(side, 1)) > MAX_VALUES:
            raise ValueError(f"has a tensor of the shape {str(shape)[:100]}. Fetch it again")
    return tuple(shape)

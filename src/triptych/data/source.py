"""The interface of every source of pictures.

A source is opened at one split and one picture size and then read by index. Reading is a pure
function; order, resuming and workers are the business of `data/order/batches.py`.

Dimensions: B pictures, H height, W width, C channels, A attributes, V numbers of a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Columns = dict[str, Any]
"""A batch before it becomes tensors. Every source has `image`, and the others as it can:

image       uint8 (B, H, W, C)
label       int64 (B,), an index into `classes`
attributes  float32 (B, A), 1 where the attribute of `attributes` holds, else 0
vector      float32 (B, V), one number per name in `vector`
caption     list of B strings, or of B tuples of strings where pictures have several
boxes       list of B float32 arrays (N, 4), xyxy relative to width and height
box_labels  list of B lists of N strings
questions   list of B tuples of (question, answer), where pictures are asked about; with it
scenes      list of B scenes, from which masks are drawn
sizes       int64 (B, 6), where pictures were cropped: original height and width, top and left of
            the crop after resizing, final height and width (arXiv:2307.01952)
mean        float32 (B, Z, h, w), cached latents, scaled, in place of `image`
deviation   float32 (B, Z, h, w), the standard deviation of each, with a KL autoencoder
skipped     list of (name, reason): pictures that could not be read and were replaced by the next
"""


@dataclass(frozen=True)
class SourceInfo:
    """What a source contains, known without opening a picture."""

    name: str
    """`digits`, `scenes`, or the name of a folder: never a local path."""
    split: str
    """`train`, `test`, or the data set's own name for it."""
    length: int | None
    """The number of pictures; None is endless."""
    shape: tuple[int, int, int]
    """(height, width, channels) of every picture."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty without labels."""
    attributes: tuple[str, ...] = ()
    """Names of the multi-hot attributes; empty without any."""
    vector: tuple[str, ...] = ()
    """Names of the continuous columns; empty without any."""
    has_captions: bool = False
    """Whether every picture has a caption."""
    asked: bool = False
    """Whether its captions are questions with answers (`triptych.data.disk.pairs`), which only
    models that answer can learn.
    """
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Pictures that were left out when the source was opened: name to reason."""
    notes: tuple[str, ...] = ()
    """What to know before training on it, such as columns that are ignored."""

    @property
    def sides(self) -> dict[str, int]:
        """The shape by name: height, width and channels."""
        return dict(zip(("height", "width", "channels"), self.shape, strict=True))


class Source(Protocol):
    """A split of a data set at one picture size."""

    @property
    def info(self) -> SourceInfo:
        """What the source contains."""

    def read(self, indices: Sequence[int]) -> Columns:
        """The pictures at these indices, in this order."""

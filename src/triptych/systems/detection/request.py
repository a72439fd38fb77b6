"""The request for zero-shot detection."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Detect:
    """Find in a picture what labels name, with a CLIP or SigLIP that never saw a box."""

    picture: str
    """A picture file: PNG, JPEG, WebP, GIF or BMP."""
    labels: tuple[str, ...] = ()
    """What to look for; each label may be found several times, or not at all."""
    model: str = "runs/clip"
    """A run folder, the folder or file of a published checkpoint, or a hub id."""
    method: Literal["dense", "window", "window-batched"] = "dense"
    """dense: patches of one pass a scale. window: each window through the image tower by itself,
    window-batched: the same numbers, many windows at once.
    """
    templates: tuple[str, ...] = ("photo",)
    """Sentences with {} for the label, or one of photo, simple, cifar, imagenet, name; their
    embeddings are averaged.
    """
    background: tuple[str, ...] = (
        "background", "a photo of the background", "nothing", "an object", "something",
    )  # fmt: skip
    """Texts that compete with the labels, so that a label that is nowhere is found nowhere: what
    lies behind things, and words for any thing, which fit better than a wrong label.
    """
    contrast: bool = True
    """Scores are shares among labels and background. Without: plain cosines from their mean to
    their largest, which always finds every label somewhere.
    """
    threshold: float = 0.3
    """The least score of a box, in [0, 1]."""
    extent: float = 0.0
    """A box holds what reaches this share of its peak, above 0 to 1; 0 is the method's own."""
    nms: float = 0.5
    """Of boxes of one label that overlap by more than this the best one stays."""
    limit: int = 20
    """Boxes of a label at most."""
    patch: int = 0
    """window: pixels of the side of a patch; 0 cuts the shorter side into 16."""
    windows: tuple[int, ...] = ()
    """window: sides of the square windows, in patches; empty derives them from picture and model.
    """
    stride: int = 1
    """window: how many patches a window moves on."""
    scales: tuple[float, ...] = ()
    """dense: longer sides of the passes, in sides of the model's pictures; empty is one pass with
    24 patches along the longer side.
    """
    pool: int = 3
    """dense: patches are averaged in squares of this side before they are compared; odd."""
    reach: int = -1
    """dense: a patch attends to patches at most so many rows and columns away, 0 to itself alone,
    -1 to the whole picture. Small models trained on pictures of one thing need 0 or 1.
    """

    def __post_init__(self) -> None:
        if not self.labels or not all(label.strip() for label in self.labels):
            raise ValueError("labels: give at least one, and none that is empty")
        if len(set(self.labels)) < len(self.labels):
            twice = next(a for i, a in enumerate(self.labels) if a in self.labels[:i])
            raise ValueError(f"labels: {twice!r} stands there twice")
        if not self.templates:
            raise ValueError("templates: give at least one, such as 'a photo of a {}.'")
        for name, least in (("threshold", 0), ("extent", 0), ("nms", 0)):
            if not least <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name, least in (("limit", 1), ("stride", 1), ("patch", 0), ("reach", -1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool is the odd side of a square of patches, not {self.pool}")
        if any(side < 1 for side in self.windows):
            raise ValueError(f"windows are sides in patches, at least 1, not {self.windows}")
        if not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales must be above 0 and at most 16, not {self.scales}")

"""The request for zero-shot detection."""

from dataclasses import dataclass
from typing import Literal

from triptych.fields import set_fields
from triptych.given import ModelName, Texts, take_texts
from triptych.nn.checks import require_at_least
from triptych.vision.given_pictures import Picture, take_picture


@dataclass(frozen=True)
class Detect:
    """Locate what labels name in a picture, by a CLIP or SigLIP, trained without boxes."""

    picture: Picture
    """A picture file: PNG, JPEG, WebP, GIF or BMP."""
    labels: Texts = ()
    """What to look for; any number of boxes is found for each label."""
    model: ModelName = "runs/clip"
    """A run folder, a published checkpoint, OWNER/NAME on the hub, or a name such as clip-b32."""
    method: Literal["dense", "window", "window-batched"] = "dense"
    """dense: patches of one pass per scale. window: sliding windows, one at a time. window-batched:
    the same numbers, with windows in batches.
    """
    templates: Texts = ("photo",)
    """Sentences with {} for the label, or photo, simple, cifar, imagenet, name for sets of them;
    embeddings are averaged.
    """
    background: Texts = (
        "background", "a photo of the background", "nothing", "an object", "something",
    )  # fmt: skip
    """Texts in the softmax beside the labels, so that absent labels are not found: names of
    backgrounds, and words for any object, which fit better than a wrong label.
    """
    contrast: bool = True
    """Scores are a softmax over labels and background. Otherwise they are cosines, scaled from
    their mean to their maximum, and every label is found somewhere.
    """
    threshold: float = 0.3
    """Least score of a box, in [0, 1]."""
    extent: float = 0.0
    """A box encloses cells of at least this share of its peak; 0 for the default of the method."""
    nms: float = 0.5
    """Of boxes of one label with a larger intersection over union, only the best is kept."""
    limit: int = 20
    """Most boxes per label."""
    patch: int = 0
    """window: side of a patch in pixels; 0 divides the shorter side into 16."""
    windows: tuple[int, ...] = ()
    """window: sides of the square windows in patches; empty derives them from picture and model."""
    stride: int = 1
    """window: distance between windows in patches."""
    scales: tuple[float, ...] = ()
    """dense: longer side of the picture in each pass, in sides of the model's input; empty for one
    pass with 24 patches along the longer side.
    """
    pool: int = 3
    """dense: odd side of the squares of patches that are averaged before they are compared."""
    reach: int = -1
    """dense: a patch attends to patches at most this many rows and columns away; 0 for itself
    alone, -1 for all. Small models trained on pictures of one object need 0 or 1.
    """

    def __post_init__(self) -> None:
        set_fields(
            self,
            picture=take_picture("picture", self.picture),
            labels=take_texts("labels", self.labels),
            templates=take_texts("templates", self.templates),
            background=take_texts("background", self.background),
        )
        if not self.labels or not all(label.strip() for label in self.labels):
            raise ValueError("labels: give at least one, and no empty ones")
        if len(set(self.labels)) < len(self.labels):
            twice = next(a for i, a in enumerate(self.labels) if a in self.labels[:i])
            raise ValueError(f"labels: {twice!r} is given twice")
        if not self.templates:
            raise ValueError("templates: give at least one, such as 'a photo of a {}.'")
        for name, least in (("threshold", 0), ("extent", 0), ("nms", 0)):
            if not least <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name, least in (("limit", 1), ("stride", 1), ("patch", 0), ("reach", -1)):
            require_at_least(self, least, name)
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool must be odd, the side of a square of patches, not {self.pool}")
        if any(side < 1 for side in self.windows):
            raise ValueError(f"windows must be sides in patches, at least 1, not {self.windows}")
        if not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales must be above 0 and at most 16, not {self.scales}")

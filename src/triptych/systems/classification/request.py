"""The request for zero-shot classification."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from triptych.fields import set_fields
from triptych.given import Labels, ModelName, Texts, Words, take_texts
from triptych.vision.given_pictures import Pictures, take_pictures

OWN_CLASSES = "auto"
"""In place of labels: the classes of the pictures' own source."""


@dataclass(frozen=True)
class Classify:
    """Say which labels fit pictures that no one has trained for, with a CLIP or SigLIP."""

    pictures: Pictures
    """Picture files, or one folder of them; with --labels auto any labelled source."""
    labels: Labels = ()
    """What the pictures may show: names, a .txt file with one name per line, or `auto`: the
    source's own classes (its sub-folders), which are then also the ground truth.
    """
    model: ModelName = "runs/clip"
    """A run folder, a published checkpoint, OWNER/NAME on the hub, or a name such as clip-b32."""
    templates: Texts = ("photo",)
    """Sentences around the labels, whose embeddings are averaged: photo (1), simple (7), cifar
    (18), imagenet (80), name (the label alone), or your own with {} for the label.
    """
    truth: bool = False
    """Compare with the source's own classes although labels are given: the labels rename the
    classes in their order.
    """
    split: Words = ""
    """The split of a source to use. Default: `test` where there is one, else all of it."""
    limit: int = 0
    """Most pictures to classify; 0 is all."""
    batch_size: int = field(default=32, metadata={"was": "batch"})
    """Pictures in a batch."""
    device: Words = "auto"
    """`cpu`, `cuda`, ...; `auto` takes an accelerator where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the model; auto is the fastest of the device."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            pictures=take_pictures("pictures", self.pictures),
            labels=take_texts("labels", self.labels),
            templates=take_texts("templates", self.templates),
        )
        if not self.pictures:
            raise ValueError("no pictures: name files or a folder, before --labels")
        if not self.labels:
            raise ValueError(
                "no labels: say what the pictures may show, as in --labels cat dog 'a red bus'; "
                "--labels names.txt takes a name a line, --labels auto a folder's sub-folders"
            )
        distinct_labels(self.labels)
        if not self.templates:
            raise ValueError("no templates: photo is the plainest")
        if self.limit < 0 or not 1 <= self.batch_size <= 65_536:
            raise ValueError(
                f"limit is 0 or more and batch_size 1 to 65536, not {self.limit} and "
                f"{self.batch_size}"
            )

    @property
    def evaluated(self) -> bool:
        """Whether the pictures' own classes are the truth."""
        return self.truth or tuple(self.labels) == (OWN_CLASSES,)


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels without needless spaces.

    Raises:
        ValueError: one is empty, or two are the same.
    """
    found: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        name = " ".join(label.split())
        if not name:
            raise ValueError(f"label {number} of {len(labels)} is empty")
        if name in found:
            raise ValueError(f"the label {name!r} is there twice, as {found[name]} and {number}")
        found[name] = number
    return tuple(found)

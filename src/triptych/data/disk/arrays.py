"""Pictures in memory as one array: digits, and the contents of IDX, CIFAR and `.npz` files.

Dimensions: N pictures, H height, W width, C channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from triptych.data.disk.index import Annotations, Index

MAX_CLASSES = 1_000_000
LUMA = np.array([299, 587, 114])  # thousandths of red, green, blue (ITU-R BT.601), as in Pillow


class Part(NamedTuple):
    """Pictures of one split."""

    split: str
    images: UInt8[np.ndarray, "N H W C"]
    labels: Int64[np.ndarray, " N"] | None


@dataclass(frozen=True, eq=False)
class InMemory:
    """Pictures as one array."""

    images: UInt8[np.ndarray, "N H W C"]

    def load(self, row: int, channels: int, near: int | None) -> UInt8[np.ndarray, "H W C"]:
        picture: UInt8[np.ndarray, "H W C"] = self.images[row]
        if picture.shape[2] == channels:
            return picture
        if channels == 3:
            return np.repeat(picture, 3, axis=2)
        grey: UInt8[np.ndarray, "H W"] = ((picture @ LUMA + 500) // 1000).astype(np.uint8)
        return grey[:, :, None]


def array_index(name: str, form: str, parts: list[Part], classes: tuple[str, ...] = ()) -> Index:
    """The index of pictures in memory. `classes` are the names of the labels, by default numbers.

    Raises:
        ValueError: no pictures, pictures of several shapes, or labels that do not count from 0.
    """
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise ValueError(
            f"the splits of {name!r} have pictures of different shapes: {sorted(shapes)}"
        )
    images = np.concatenate([p.images for p in parts]) if len(parts) > 1 else parts[0].images
    if not len(images):
        raise ValueError(f"{name!r} contains no pictures")
    labels = None
    if all(part.labels is not None for part in parts):
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= (len(classes) or MAX_CLASSES):
            raise ValueError(
                f"{name!r} has labels from {least} to {most}: they must count from 0 to "
                f"{(len(classes) or MAX_CLASSES) - 1:,} at most"
            )
        classes = classes or tuple(str(number) for number in range(most + 1))
    height, width, channels = images.shape[1:]
    return Index(
        name=name,
        form=form,
        stored=InMemory(images),
        names=[f"{p.split or 'picture'} {i}" for p in parts for i in range(len(p.images))],
        sizes=np.broadcast_to(np.array([height, width], np.int32), (len(images), 2)),
        grey=np.full(len(images), channels == 1),
        splits=[part.split for part in parts for _ in range(len(part.images))],
        annotations=Annotations(classes=classes if labels is not None else (), labels=labels),
    )

"""Features of pictures from a frozen model.

Dimensions: N pictures, D width of a feature.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from triptych.data import gallery
from triptych.data.disk.splits import holds_out
from triptych.data.names import SCENES
from triptych.data.sources import open_index
from triptych.weights.loaded import Loaded


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the pictures embedded so far, with their labels."""

    names: tuple[str, ...]
    features: Float[Tensor, "N D"]
    """Unit length, float32."""
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    skipped: dict[str, str]
    """Pictures that could not be read, with the reason."""
    done: float
    """The share of pictures that are done."""


def train_and_test(
    name: str, test: str = "", limit: int = 0
) -> tuple[gallery.Gallery, gallery.Gallery]:
    """Training and test pictures: two sources, or the two splits of one.

    A source without a test split holds out a tenth (`data/disk/splits.py`). Classes of two sources
    are matched by name. `limit` is per split; 0 is all.

    Raises:
        ValueError: there is no such source, it has no classes, or the test classes are others.
    """
    if not test:
        train = gallery.open_labelled(name, "train", limit)
        return train, gallery.open_labelled(name, "test", limit)
    apart = name in SCENES or holds_out(open_index(name).splits)
    learned = gallery.open_labelled(name, "train" if apart else "", limit)
    return learned, _renumber(gallery.open_labelled(test, "", limit), learned.classes, test, name)


def embed_gallery(loaded: Loaded, pictures: gallery.Gallery, batch: int = 32) -> Iterator[Features]:
    """Embed pictures batch by batch; the last item has all of them.

    Raises:
        ValueError: no picture can be read, or the model cannot embed pictures.
    """
    features: Tensor | None = None
    read: list[gallery.Picture] = []
    skipped = dict(pictures.skipped)
    for decoded in gallery.decode(pictures, batch):
        skipped |= decoded.skipped
        if decoded.pictures:
            vectors = loaded.embed_image(decoded.pictures, batch)
            if features is None:
                features = vectors.new_empty(len(pictures.pictures), vectors.shape[1])
            features[len(read) : len(read) + len(vectors)] = vectors
            read += decoded.sources
        if features is not None:
            yield Features(
                tuple(picture.name for picture in read),
                features[: len(read)],
                torch.tensor([picture.label for picture in read]),
                pictures.classes,
                skipped,
                decoded.done,
            )
    if features is None:
        raise ValueError(_no_picture(skipped))


def require_pictures(pictures: gallery.Gallery) -> None:
    """Raise ValueError for a gallery without pictures, before a model is loaded for it."""
    if not pictures.pictures:
        raise ValueError(_no_picture(pictures.skipped))


def _no_picture(skipped: Mapping[str, str]) -> str:
    reasons = [f"\n  {name}: {why}" for name, why in list(skipped.items())[:20]]
    return "no picture could be read" + ("".join(reasons) or ": there is none")


def _renumber(
    found: gallery.Gallery, classes: Sequence[str], name: str, learned: str
) -> gallery.Gallery:
    """The same pictures, their labels numbered as the classes of another source."""
    number = {label: at for at, label in enumerate(classes)}
    if unknown := [label for label in found.classes if label not in number]:
        raise ValueError(
            f"{name} has classes that are not in {learned}: {', '.join(unknown[:10])}"
            f"{', ...' if len(unknown) > 10 else ''}; rename them, those of {learned} are "
            f"{', '.join(classes[:10])}"
        )
    places = [number[label] for label in found.classes]
    pictures = [picture._replace(label=places[picture.label]) for picture in found.pictures]
    return gallery.Gallery(pictures, tuple(classes), found.skipped)

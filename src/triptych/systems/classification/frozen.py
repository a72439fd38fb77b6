"""What a frozen model sees of labelled pictures: a vector each, to learn classes from.

Dimensions: N pictures, D width of a feature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from triptych.data import gallery
from triptych.data.disk.splits import holds_out
from triptych.data.sources import SCENES, open_index
from triptych.weights.loaded import Loaded


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures of known classes, as far as they were looked at."""

    features: Float[Tensor, "N D"]
    """Unit length, float32."""
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    skipped: dict[str, str]
    """Pictures that could not be read, with the reason."""
    done: float
    """The share that was looked at."""


def train_and_test(
    name: str, test: str = "", limit: int = 0
) -> tuple[gallery.Gallery, gallery.Gallery]:
    """Pictures to learn from and pictures to be judged on: two sources, or both splits of one.

    Where a source sets none aside, a tenth is held out (`data/splits.py`). Of two sources the
    classes are matched by name. `limit` holds for each; 0 is all.

    Raises:
        ValueError: there is no such source, it has no classes, or the two have different ones.
    """
    if not test:
        train = gallery.open_labelled(name, "train", limit)
        return train, gallery.open_labelled(name, "test", limit)
    apart = name in SCENES or holds_out(open_index(name).splits)
    learned = gallery.open_labelled(name, "train" if apart else "", limit)
    return learned, _renumbered(gallery.open_labelled(test, "", limit), learned.classes, test, name)


def look(loaded: Loaded, pictures: gallery.Gallery, batch: int = 32) -> Iterator[Seen]:
    """Look at pictures batch by batch; the last item has them all.

    Raises:
        ValueError: no picture can be read, or the model embeds no pictures.
    """
    features: Tensor | None = None
    labels: list[int] = []
    skipped = dict(pictures.skipped)
    for decoded in gallery.decode(pictures, batch):
        skipped |= decoded.skipped
        if decoded.pictures:
            vectors = loaded.embed_image(decoded.pictures, batch)
            if features is None:
                features = vectors.new_empty(len(pictures.pictures), vectors.shape[1])
            features[len(labels) : len(labels) + len(vectors)] = vectors
            labels += [picture.label for picture in decoded.sources]
        if features is not None:
            known = features[: len(labels)], torch.tensor(labels)
            yield Seen(*known, pictures.classes, skipped, decoded.done)
    if features is None:
        reasons = [f"\n  {name}: {why}" for name, why in list(skipped.items())[:20]]
        raise ValueError("no picture could be read" + ("".join(reasons) or ": there is none"))


def _renumbered(
    found: gallery.Gallery, classes: Sequence[str], name: str, learned: str
) -> gallery.Gallery:
    """The same pictures with labels that count the classes of another source."""
    number = {known: at for at, known in enumerate(classes)}
    if unknown := [known for known in found.classes if known not in number]:
        raise ValueError(
            f"{name} has classes that {learned} has not: {', '.join(unknown[:10])}"
            f"{', ...' if len(unknown) > 10 else ''}; there: {', '.join(classes[:10])}"
        )
    places = [number[known] for known in found.classes]
    pictures = [picture._replace(label=places[picture.label]) for picture in found.pictures]
    return gallery.Gallery(pictures, tuple(classes), found.skipped)

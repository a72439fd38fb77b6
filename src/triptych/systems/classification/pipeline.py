"""Zero-shot classification: which labels fit a picture (arXiv:2103.00020, section 3.1).

Dimensions: N pictures, L labels, K templates, E width of the shared space.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float, Int64
from torch import Tensor

from triptych import runtime
from triptych.data import gallery
from triptych.fields import nearest
from triptych.given import InMemory
from triptych.systems.classification.frozen import embed_gallery, require_pictures
from triptych.systems.classification.request import OWN_CLASSES, Classify, distinct_labels
from triptych.systems.two_towers.labels import embed_labels
from triptych.text.templates import TEMPLATES
from triptych.vision.given_pictures import kept_pictures
from triptych.weights.loaded import Load

MAX_LABELS_FILE = 16 << 20  # bytes


@dataclass(frozen=True, eq=False)
class Classified:
    """Pictures embedded so far, and labels, in one space."""

    request: Classify
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    names: tuple[str, ...]
    """Of the pictures that could be read."""
    image: Float[Tensor, "N E"]
    text: Float[Tensor, "L E"]
    """Unit length, one row a label."""
    reads: str
    """softmax: the labels share one probability. sigmoid: each label has its own."""
    scale: float
    """What cosines are multiplied by: the inverse of the learned temperature."""
    bias: float
    """What is then added; 0 for CLIP."""
    truth: Int64[Tensor, " N"] | None
    """The label of each picture in its source, if the request compares with it."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read, with the reason."""
    cut: dict[str, str] = field(default_factory=dict)
    """Prompts that are too long for the model, with the end that was cut off."""
    done: float = 1.0
    """The share of the pictures that are done."""

    def cosines(self) -> Float[Tensor, "N L"]:
        return self.image @ self.text.T

    def logits(self) -> Float[Tensor, "N L"]:
        return self.scale * self.cosines() + self.bias

    def probabilities(self) -> Float[Tensor, "N L"]:
        """By the model's own softmax or sigmoid."""
        return to_probabilities(self.logits(), self.reads)


def to_probabilities(logits: Float[Tensor, "N L"], how: str) -> Float[Tensor, "N L"]:
    """Logits as probabilities: one `softmax` over the labels, or a `sigmoid` for each of them."""
    if how not in ("softmax", "sigmoid"):
        raise ValueError(f"logits become probabilities by softmax or sigmoid, not {how!r}")
    return logits.softmax(-1) if how == "softmax" else logits.sigmoid()


def run(request: Classify, load: Load) -> Iterator[Classified]:
    """Embed pictures batch by batch; the last item has all of them.

    Raises:
        ValueError: no picture can be read, or labels, templates, source or model do not fit.
    """
    templates = resolve_templates(request.templates)
    labels = read_labels(request.labels)
    found = gallery_of(request)
    require_pictures(found)
    if request.evaluated:
        labels = _renamed(found.classes, labels)
    loaded = load(request.model, runtime.device(request.device), request.dtype)
    text, cut = embed_labels(loaded, labels, templates)
    scale = loaded.model.logit_scale
    bias = getattr(loaded.model, "logit_bias", None)
    for pictures in embed_gallery(loaded, found, request.batch_size):
        yield Classified(
            request,
            labels,
            templates,
            pictures.names,
            pictures.features,
            text,
            str(loaded.model.reads),
            float(scale.float().exp()),  # type: ignore[operator]
            0.0 if bias is None else float(bias),
            pictures.labels if request.evaluated else None,
            pictures.skipped,
            cut,
            pictures.done,
        )


def resolve_templates(names: Sequence[str]) -> tuple[str, ...]:
    """Templates by the names of published sets, or written out with `{}` for the label.

    Raises:
        ValueError: neither a set nor a sentence with `{}`; names the nearest set.
    """
    found: list[str] = []
    for name in names:
        if name not in TEMPLATES and "{}" not in name:
            near = nearest(name, list(TEMPLATES))
            raise ValueError(
                f"no templates {name!r}.{near} There are {', '.join(TEMPLATES)}; a template of "
                "your own has {} where the label goes"
            )
        found += TEMPLATES.get(name, (name,))
    return tuple(dict.fromkeys(found))


def read_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels of a request: given, or the lines of one .txt file; none for `auto`.

    Raises:
        ValueError: the file cannot be read, or a label is empty or there twice.
    """
    if tuple(labels) == (OWN_CLASSES,):
        return ()
    if len(labels) > 1 or not labels[0].endswith(".txt"):
        return distinct_labels(labels)
    path = Path(labels[0])
    try:
        if path.stat().st_size > MAX_LABELS_FILE:
            raise ValueError(f"{path} is no list of labels: it has {path.stat().st_size:,} bytes")
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
        return distinct_labels(lines)
    except OSError as error:
        raise ValueError(f"{path}, a file of labels, cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no list of labels: it is not UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def gallery_of(request: Classify) -> gallery.Gallery:
    """The pictures of a request.

    Raises:
        ValueError: they are to be compared with the classes of a source that has none.
    """
    pictures = kept_pictures(request.pictures)
    if not request.evaluated:
        return gallery.list_pictures(pictures, request.limit)
    if len(pictures) != 1 or isinstance(pictures[0], InMemory):
        given = f"{len(pictures)} paths" if len(pictures) != 1 else "a picture in memory"
        raise ValueError(
            f"comparing with the pictures' own classes takes one folder or source, not {given}"
        )
    return gallery.open_labelled(pictures[0], request.split, request.limit)


def _renamed(classes: Sequence[str], labels: tuple[str, ...]) -> tuple[str, ...]:
    """What the classes of a source are called: as they are, or in their order as given."""
    if not labels:
        return distinct_labels([name.replace("_", " ") for name in classes])
    if len(labels) != len(classes):
        raise ValueError(
            f"{len(labels)} labels cannot rename the {len(classes)} classes of the source, which "
            f"are {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    return labels

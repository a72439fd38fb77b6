"""Boxes as annotation tools and detectors write them: COCO, Pascal VOC, YOLO, and our own JSON.

Inside the library a box is relative corners; each form says here what it makes of them. File names
go in without their folders.

Dimensions: N boxes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args
from xml.etree import ElementTree

from jaxtyping import Float
from torch import Tensor

from triptych.vision.boxes import absolute, from_xyxy

Format = Literal["coco", "voc", "yolo", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[Format, str] = {"coco": ".coco.json", "voc": ".xml", "yolo": ".txt", "json": ".json"}
"""What a file of each form is called, after the picture's name without its own ending."""


@dataclass(frozen=True)
class Annotated:
    """A picture and the boxes on it."""

    file: str
    """Its name; folders before it are left out of everything that is written."""
    height: int
    width: int
    boxes: Float[Tensor, "N 4"]
    """Relative corners."""
    labels: tuple[str, ...]
    scores: tuple[float, ...] = ()
    """In [0, 1]; none where people drew the boxes."""

    def __post_init__(self) -> None:
        counts = len(self.boxes), len(self.labels), len(self.scores or self.labels)
        if len(set(counts)) > 1:
            raise ValueError(f"{counts[0]} boxes, {counts[1]} labels and {counts[2]} scores")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.width} x {self.height} pixels has no boxes")

    @property
    def name(self) -> str:
        return PurePath(self.file).name


def coco(pictures: Sequence[Annotated], labels: Sequence[str]) -> dict[str, Any]:
    """A COCO data set: boxes as left, top, width and height in pixels, numbers from 1.

    Detected boxes have their `score` beside them, which `pycocotools` ignores in a truth and reads
    in a result.

    Raises:
        ValueError: a box whose label is not among `labels`.
    """
    annotations: list[dict[str, Any]] = []
    for image, picture in enumerate(pictures, 1):
        corners = absolute(picture.boxes.double(), picture.height, picture.width)
        for number, box in enumerate(from_xyxy(corners, "xywh").tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": _place(picture.labels[number], labels) + 1,
                    "bbox": [_short(x) for x in box],
                    "area": _short(box[2] * box[3]),
                    "iscrowd": 0,
                    **({"score": _short(picture.scores[number])} if picture.scores else {}),
                }
            )
    images = [
        {"id": number, "file_name": p.name, "width": p.width, "height": p.height}
        for number, p in enumerate(pictures, 1)
    ]
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc(picture: Annotated) -> str:
    """A Pascal VOC file: corners as whole pixels, counted from 1, the last one inside the box."""
    root = ElementTree.Element("annotation")
    _child(root, "filename", picture.name)
    size = _child(root, "size")
    for tag, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        _child(size, tag, str(value))
    _child(root, "segmented", "0")
    corners = absolute(picture.boxes.double(), picture.height, picture.width).tolist()
    for number, (label, (x0, y0, x1, y1)) in enumerate(zip(picture.labels, corners, strict=True)):
        thing = _child(root, "object")
        _child(thing, "name", label)
        for tag, text in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            _child(thing, tag, text)
        left, right = _pixels(x0, x1, picture.width)
        top, bottom = _pixels(y0, y1, picture.height)
        box = _child(thing, "bndbox")
        ends = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        for tag, value in ends.items():
            _child(box, tag, str(value))
        if picture.scores:
            _child(thing, "score", f"{_short(picture.scores[number]):g}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def yolo(picture: Annotated, labels: Sequence[str]) -> str:
    """A YOLO file, one line a box: the label's place among `labels` from 0, then centre, width and
    height, relative; a sixth number is the score. No boxes, no lines.

    Raises:
        ValueError: a box whose label is not among `labels`.
    """
    lines = []
    for number, box in enumerate(from_xyxy(picture.boxes.double(), "cxcywh").tolist()):
        scores = picture.scores[number : number + 1]
        numbers = " ".join(f"{x:.6f}" for x in (*box, *scores))
        lines.append(f"{_place(picture.labels[number], labels)} {numbers}\n")
    return "".join(lines)


def plain(picture: Annotated) -> dict[str, Any]:
    """Our own JSON: relative corners and pixels side by side."""
    pixels = absolute(picture.boxes.double(), picture.height, picture.width).tolist()
    relative = picture.boxes.double().tolist()
    boxes = [
        {
            "label": label,
            **({"score": _short(picture.scores[number])} if picture.scores else {}),
            "box": [_short(x) for x in relative[number]],
            "pixels": [_short(x) for x in pixels[number]],
        }
        for number, label in enumerate(picture.labels)
    ]
    size = {"width": picture.width, "height": picture.height}
    return {"picture": picture.name, **size, "boxes": boxes}


def written(picture: Annotated, labels: Sequence[str], form: Format) -> str:
    """One picture's boxes as the text of a file of that form.

    Raises:
        ValueError: an unknown form, or a box whose label is not among `labels`.
    """
    if form == "coco":
        return json.dumps(coco([picture], labels)) + "\n"
    if form == "voc":
        return voc(picture)
    if form == "yolo":
        return yolo(picture, labels)
    if form == "json":
        return json.dumps(plain(picture)) + "\n"
    raise ValueError(f"boxes are written as {', '.join(FORMATS)}, not {form!r}")


def _place(label: str, labels: Sequence[str]) -> int:
    if label not in labels:
        raise ValueError(f"a box is called {label!r}, which is not among the {len(labels)} labels")
    return list(labels).index(label)


def _pixels(first: float, last: float, length: int) -> tuple[int, int]:
    """From 1, both inside the picture, at least one pixel."""
    start = min(max(0, round(first)), length - 1)
    end = min(max(start + 1, round(last)), length)
    return start + 1, end


def _child(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    # XML has no way to write a control character, not even as a number
    child.text = None if text is None else "".join(c for c in text if c.isprintable())
    return child


def _short(number: float) -> float:
    """Six digits behind the point; no NaN, which JSON lacks."""
    if not math.isfinite(number):
        raise ValueError(f"a box or score is {number}, no finite number")
    return round(number, 6)

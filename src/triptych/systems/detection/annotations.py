"""Boxes as files: COCO, Pascal VOC, YOLO, and our own JSON.

Boxes come as relative corners. Files contain the names of pictures, never their folders.

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
"""Suffixes of files, which replace that of the picture."""


@dataclass(frozen=True)
class Annotated:
    """A picture and its boxes."""

    file: str
    """Its path; only the name is written to files."""
    height: int
    width: int
    boxes: Float[Tensor, "N 4"]
    """Relative corners."""
    labels: tuple[str, ...]
    scores: tuple[float, ...] = ()
    """In [0, 1]; empty for ground truth."""

    def __post_init__(self) -> None:
        counts = len(self.boxes), len(self.labels), len(self.scores or self.labels)
        if len(set(counts)) > 1:
            raise ValueError(f"{counts[0]} boxes, {counts[1]} labels and {counts[2]} scores")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.width} x {self.height} pixels is empty")

    @property
    def name(self) -> str:
        return PurePath(self.file).name


def to_coco(pictures: Sequence[Annotated], labels: Sequence[str]) -> dict[str, Any]:
    """A COCO data set: boxes as left, top, width and height in pixels, ids counted from 1.

    Boxes with scores have a `score`, which `pycocotools` reads in results and ignores in truths.

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
                    "category_id": _index(picture.labels[number], labels) + 1,
                    "bbox": [_rounded(x) for x in box],
                    "area": _rounded(box[2] * box[3]),
                    "iscrowd": 0,
                    **({"score": _rounded(picture.scores[number])} if picture.scores else {}),
                }
            )
    images = [
        {"id": number, "file_name": p.name, "width": p.width, "height": p.height}
        for number, p in enumerate(pictures, 1)
    ]
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def to_voc(picture: Annotated) -> str:
    """A Pascal VOC file: corners in whole pixels, counted from 1 and inclusive."""
    root = ElementTree.Element("annotation")
    _child(root, "filename", picture.name)
    size = _child(root, "size")
    for tag, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        _child(size, tag, str(value))
    _child(root, "segmented", "0")
    corners = absolute(picture.boxes.double(), picture.height, picture.width).tolist()
    for number, (label, (x0, y0, x1, y1)) in enumerate(zip(picture.labels, corners, strict=True)):
        element = _child(root, "object")
        _child(element, "name", label)
        for tag, text in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            _child(element, tag, text)
        left, right = _pixels(x0, x1, picture.width)
        top, bottom = _pixels(y0, y1, picture.height)
        box = _child(element, "bndbox")
        ends = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        for tag, value in ends.items():
            _child(box, tag, str(value))
        if picture.scores:
            _child(element, "score", f"{_rounded(picture.scores[number]):g}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def to_yolo(picture: Annotated, labels: Sequence[str]) -> str:
    """A YOLO file, one line per box: index of the label from 0, relative centre, width and height,
    and the score if there is one. Empty without boxes.

    Raises:
        ValueError: a box whose label is not among `labels`.
    """
    lines = []
    for number, box in enumerate(from_xyxy(picture.boxes.double(), "cxcywh").tolist()):
        scores = picture.scores[number : number + 1]
        numbers = " ".join(f"{x:.6f}" for x in (*box, *scores))
        lines.append(f"{_index(picture.labels[number], labels)} {numbers}\n")
    return "".join(lines)


def to_plain_json(picture: Annotated) -> dict[str, Any]:
    """Our own JSON: corners of boxes both relative and in pixels."""
    pixels = absolute(picture.boxes.double(), picture.height, picture.width).tolist()
    relative = picture.boxes.double().tolist()
    boxes = [
        {
            "label": label,
            **({"score": _rounded(picture.scores[number])} if picture.scores else {}),
            "box": [_rounded(x) for x in relative[number]],
            "pixels": [_rounded(x) for x in pixels[number]],
        }
        for number, label in enumerate(picture.labels)
    ]
    size = {"width": picture.width, "height": picture.height}
    return {"picture": picture.name, **size, "boxes": boxes}


def format_boxes(picture: Annotated, labels: Sequence[str], form: Format) -> str:
    """The boxes of a picture as the text of a file.

    Raises:
        ValueError: an unknown format, or a box whose label is not among `labels`.
    """
    if form == "coco":
        return json.dumps(to_coco([picture], labels)) + "\n"
    if form == "voc":
        return to_voc(picture)
    if form == "yolo":
        return to_yolo(picture, labels)
    if form == "json":
        return json.dumps(to_plain_json(picture)) + "\n"
    raise ValueError(f"the formats of boxes are {', '.join(FORMATS)}, not {form!r}")


def _index(label: str, labels: Sequence[str]) -> int:
    if label not in labels:
        raise ValueError(f"a box has the label {label!r}, which is not one of {tuple(labels)}")
    return list(labels).index(label)


def _pixels(first: float, last: float, length: int) -> tuple[int, int]:
    """First and last pixel, counted from 1, inside the picture; at least one pixel."""
    start = min(max(0, round(first)), length - 1)
    end = min(max(start + 1, round(last)), length)
    return start + 1, end


def _child(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    # XML cannot express control characters, not even as numbers
    child.text = None if text is None else "".join(c for c in text if c.isprintable())
    return child


def _rounded(number: float) -> float:
    """Rounded to six decimals; refuses NaN and infinity, which JSON does not have."""
    if not math.isfinite(number):
        raise ValueError(f"a coordinate or score of a box is {number}, not a finite number")
    return round(number, 6)

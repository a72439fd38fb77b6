"""Captions, labels and boxes of one picture, from the files beside it or from a metadata file.

All of this text is untrusted: sizes are limited, and a row that cannot be used is a ValueError
whose message is the reason for skipping its picture.
"""

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triptych.data.disk.files import Place

MAX_CAPTION = 32_000  # characters
MAX_TEXT = 1 << 20  # bytes of a caption file or of a line of metadata
CAPTION_KEYS = ("captions", "caption", "text", "prompt")
LABEL_KEYS = ("label", "class")
YOLO_LINE = re.compile(r"\d+( +[-+.\deE]+){4}")

Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Row:
    """The annotations of one picture."""

    captions: tuple[str, ...] = ()
    label: str | int | None = None
    split: str = ""
    columns: dict[str, Any] | None = None  # further columns, unchanged
    boxes: list[Box] | None = None  # left, top, width, height
    box_labels: tuple[str, ...] = ()
    relative: bool = False  # boxes are relative to the picture, else in pixels
    blank: bool = False  # an empty .txt: no caption, or no boxes


def row_beside(files: dict[str, Place]) -> Row:
    """A row from the files beside a picture, by their extension: `txt`, `json`, `cls`."""
    row = Row()
    if "json" in files:
        fields = _parse_object(_read_text(files["json"]))
        names = (*CAPTION_KEYS, *LABEL_KEYS, "objects", "attributes")
        row = row_of({name: fields[name] for name in names if name in fields})
    if "cls" in files:
        label = _read_text(files["cls"]).strip()
        if not label.isdecimal():
            raise ValueError("its .cls file must contain a class number")
        row.label = int(label)
    if "txt" in files:
        lines = [line.strip() for line in _read_text(files["txt"]).splitlines() if line.strip()]
        if lines and all(YOLO_LINE.fullmatch(line) for line in lines):
            _add_yolo(row, lines)
        elif lines:
            row.captions = tuple(caption(line) for line in lines)
        else:
            row.blank = True
    return row


def row_of(fields: dict[str, Any]) -> Row:
    """A row from named fields; unknown names become further columns."""
    rest = dict(fields)
    row = Row()
    values = [rest.pop(name) for name in CAPTION_KEYS if name in rest]
    if values:
        texts = values[0] if isinstance(values[0], list) else [values[0]]
        row.captions = tuple(caption(text) for text in texts)
        if not texts:
            raise ValueError("an empty list of captions")
    labels = [rest.pop(name) for name in LABEL_KEYS if name in rest]
    if labels and labels[0] not in (None, ""):
        integral = isinstance(labels[0], int | float) and labels[0] % 1 == 0
        if not integral and not isinstance(labels[0], str):
            raise ValueError(f"a label must be a name or a whole number, not {labels[0]!r:.40}")
        row.label = int(labels[0]) if integral else clean(labels[0])
    if rest.get("split"):
        row.split = str(rest["split"])
    rest.pop("split", None)
    objects = rest.pop("objects", None)
    if isinstance(objects, str) and objects.strip():
        objects = _parse_object(objects)  # a cell of a CSV
    if objects:
        _add_objects(row, objects)
    row.columns = rest or None
    return row


def metadata(name: str, place: Place) -> Iterator[tuple[str, Row | str]]:
    """The rows of a metadata file, `.jsonl` or `.csv`: a picture's name, and its row or the reason
    why it cannot be used. A line without a name is called by its number.
    """
    lines = csv_lines(place) if name.endswith(".csv") else json_lines(place)
    for number, fields in lines:
        where = f"line {number}"
        if isinstance(fields, str):
            yield where, fields
            continue
        file_name = fields.pop("file_name", None)
        if not isinstance(file_name, str) or not file_name:
            yield where, "no file_name"
            continue
        try:
            yield file_name, row_of(fields)
        except ValueError as error:
            yield file_name, str(error)


def json_lines(place: Place) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Lines of JSON objects by number; a string is the reason why a line cannot be used."""
    with open(place.path, "rb") as file:
        number = 0
        while line := file.readline(MAX_TEXT + 1):
            number += 1
            if len(line) > MAX_TEXT:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_TEXT)
                yield number, f"a line of more than {MAX_TEXT:,} bytes"
            elif line.strip():
                try:
                    yield number, _parse_object(decode(line))
                except ValueError as error:
                    yield number, str(error)


def csv_lines(place: Place) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows of a CSV with a header line, as `json_lines`; an empty cell has no value."""
    with open(place.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, f"not a row of a CSV: {error}"
                continue
            if cells is None:
                return
            if header is None:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header) and cells:
                yield reader.line_num, f"{len(cells)} cells, but the header line has {len(header)}"
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                yield reader.line_num, "not UTF-8"
            elif cells:
                named = dict(zip(header, cells, strict=True))
                texts = CAPTION_KEYS  # an empty caption is an error, not a missing value
                yield reader.line_num, {n: v for n, v in named.items() if v or n in texts}


def caption(text: object) -> str:
    """A caption as one line. ValueError if it is not text, empty or too long."""
    if not isinstance(text, str):
        raise ValueError(f"a caption must be text, not {type(text).__name__}")
    if len(text) > MAX_CAPTION:
        raise ValueError(f"a caption of more than {MAX_CAPTION:,} characters")
    cleaned = clean(text)
    if not cleaned:
        raise ValueError("an empty caption")
    return cleaned


def clean(text: str) -> str:
    """Text with single spaces. ValueError if it has NUL characters or lone surrogates."""
    if "\0" in text:
        raise ValueError("text with a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text with an incomplete character (a lone surrogate)") from None
    return " ".join(text.split())


def decode(data: bytes) -> str:
    """Bytes as UTF-8, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _read_text(place: Place) -> str:
    data = place.head(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise ValueError(f"a text of more than {MAX_TEXT:,} bytes")
    text = decode(data)
    if len(text) > MAX_CAPTION and "\n" not in text.strip():
        raise ValueError(f"a caption of more than {MAX_CAPTION:,} characters")
    return text


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError:
        raise ValueError("not valid JSON") from None
    if not isinstance(value, dict):
        raise ValueError("JSON that is not an object")
    return value


def _add_yolo(row: Row, lines: list[str]) -> None:
    """YOLO's lines: `class centre_x centre_y width height`, relative to the picture."""
    boxes, labels = [], []
    for line in lines:
        label, *numbers = line.split()
        x, y, width, height = parse_box(numbers)
        boxes.append((x - width / 2, y - height / 2, width, height))
        labels.append(label)
    row.boxes, row.box_labels, row.relative = boxes, tuple(labels), True


def _add_objects(row: Row, objects: Any) -> None:
    """`{"bbox": [[x, y, width, height], ...], "categories": [...]}` in pixels."""
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox"), list):
        raise ValueError("`objects` must have a list `bbox` of [x, y, width, height]")
    row.boxes = []
    for box in objects["bbox"]:
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError("a box must be [x, y, width, height]")
        x, y, width, height = parse_box(box)
        row.boxes.append((x, y, width, height))
    names = ("categories", "category", "labels", "label")
    labels = next((objects[name] for name in names if name in objects), [""] * len(row.boxes))
    if not isinstance(labels, list) or len(labels) != len(row.boxes):
        raise ValueError("the numbers of boxes and categories differ")
    row.box_labels = tuple(clean(str(label)) for label in labels)


def parse_box(numbers: list[Any]) -> Box:
    """Left, top, width and height. ValueError if they are not four such numbers."""
    try:
        x, y, width, height = (float(number) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a box must be four numbers") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError("a box must have a positive width and height")
    return x, y, width, height

"""Captions and boxes of COCO's annotation files (cocodataset.org/#format-data).

`captions_train2017.json` and `instances_train2017.json` stand beside the pictures or tars, or in a
folder `annotations`. They list pictures by file name, wherever those are, and annotations by the
number of their picture.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from posixpath import basename, dirname, normpath, splitext
from typing import Any, NamedTuple

from triptych.data.disk.files import Place
from triptych.data.disk.rows import Box, Row, caption, clean, parse_box
from triptych.data.disk.splits import split_in_name

COCO_FILE = re.compile(r"(captions|instances)_.+\.json|_annotations\.coco\.json", re.I)
MAX_BYTES = 1 << 30  # instances_train2017.json has 450 MB


def is_coco(name: str) -> bool:
    """Whether a file is named like COCO's annotations."""
    return COCO_FILE.fullmatch(basename(name)) is not None


def annotation_files(files: Mapping[str, Place], pictures: Iterable[str]) -> dict[str, Place]:
    """The COCO files among others, by their names; a .json of a picture's own name is none."""
    stems = {splitext(picture)[0] for picture in pictures}
    return {
        name: place
        for name, place in files.items()
        if is_coco(name) and splitext(name)[0] not in stems
    }


def annotations_beside(folder: Path) -> dict[str, Place]:
    """The COCO files in the folder of a tar and in its subfolder `annotations`."""
    real = folder.resolve()
    paths = [*folder.glob("*.json"), *folder.glob("annotations/*.json")]
    inside = [path for path in sorted(paths) if path.resolve().is_relative_to(real)]
    files = {path.relative_to(folder).as_posix(): path for path in inside if path.is_file()}
    return annotation_files({name: Place(str(path)) for name, path in files.items()}, ())


class Listed(NamedTuple):
    """A picture that a COCO file lists, and what it says of it."""

    picture: str
    width: float  # of the annotated picture, whose pixels the boxes count; 0 if it is not said
    height: float
    captions: list[str]
    boxes: list[Box]
    labels: list[str]


def coco_rows(
    files: Mapping[str, Place], pictures: Iterable[str], skipped: dict[str, str], notes: list[str]
) -> dict[str, Row]:
    """The rows of the pictures that COCO files list. Pictures with a damaged annotation are added
    to `skipped`, and what is not used to `notes`.

    Raises:
        ValueError: a file is too large, or not JSON.
    """
    named: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        named[basename(picture)].append(picture)
    rows: dict[str, Row] = {}
    for name, place in files.items():
        lists = _parse(name, place)
        if lists is None:
            notes.append(f"{name} is ignored: it has no lists `images` and `annotations`")
            continue
        stem = splitext(basename(name))[0]
        found, missing = _find_pictures(lists["images"], named, stem)
        if missing or not found:
            ending = "" if found else ": it is ignored"
            notes.append(f"{missing:,} of the pictures that {name} lists are not here{ending}")
        _sort_annotations(name, lists, found, skipped, notes)
        boxed = bool(lists.get("categories"))
        for listed in found.values():
            row = _to_row(listed, boxed, split_in_name(stem))
            before = rows.get(listed.picture)
            rows[listed.picture] = row if before is None else _join(before, row)
    return rows


def _parse(name: str, place: Place) -> dict[str, Any] | None:
    """The content of a file; None if it is JSON of another form."""
    path = Path(place.path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{name} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    try:
        content = json.loads(path.read_bytes(), object_hook=_without_outlines)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not valid JSON: download it again, or rename it") from None
    lists = isinstance(content, dict) and [content.get("images"), content.get("annotations")]
    return content if lists and all(isinstance(part, list) for part in lists) else None


def _without_outlines(fields: dict[str, Any]) -> dict[str, Any]:
    """Nine tenths of the memory are outlines of objects."""
    fields.pop("segmentation", None)
    return fields


def _find_pictures(
    images: list[Any], named: Mapping[str, list[str]], stem: str
) -> tuple[dict[int | str, Listed], int]:
    """Pictures by their numbers in a file, and how many are not here. Of several pictures of one
    file name it is the one in a folder or tar whose name ends the file's, such as `train2017`.
    """
    found: dict[int | str, Listed] = {}
    missing = 0
    for image in images:
        number = image.get("id") if isinstance(image, dict) else None
        file = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(number, int | str) or not isinstance(file, str):
            missing += 1
            continue
        file = normpath(file)
        places = [p for p in named.get(basename(file), ()) if f"/{p}".endswith(f"/{file}")]
        if len(places) > 1:
            part = stem.partition("_")[2]
            places = [p for p in places if part and part in dirname(p)]
        if len(places) != 1:
            missing += 1
            continue
        sides = [image.get(side) for side in ("width", "height")]
        known = all(type(side) is int and 0 < side < 1 << 32 for side in sides)
        width, height = sides if known else (0, 0)
        found[number] = Listed(places[0], width, height, [], [], [])
    return found, missing


def _sort_annotations(
    name: str,
    lists: Mapping[str, Any],
    found: Mapping[int | str, Listed],
    skipped: dict[str, str],
    notes: list[str],
) -> None:
    """Add each annotation to its picture."""
    categories = {
        entry["id"]: entry.get("name")
        for entry in lists.get("categories") or ()
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | str)
    }
    crowds = 0
    for annotation in lists["annotations"]:
        number = annotation.get("image_id") if isinstance(annotation, dict) else None
        listed = found.get(number) if isinstance(number, int | str) else None
        if listed is None:
            continue
        try:
            if "caption" in annotation:
                listed.captions.append(caption(annotation["caption"]))
            elif annotation.get("iscrowd") == 1:
                crowds += 1
            elif "bbox" in annotation:
                listed.boxes.append(_box(annotation["bbox"], listed))
                listed.labels.append(_category(annotation.get("category_id"), categories))
        except ValueError as error:
            skipped[listed.picture] = f"{name}: {error}"
    if crowds:
        notes.append(f"{crowds:,} boxes of {name} are left out: they are around crowds")


def _box(numbers: Any, listed: Listed) -> Box:
    """Left, top, width and height, relative to the picture if its size is known."""
    x, y, width, height = parse_box(numbers if isinstance(numbers, list) else [])
    across, down = listed.width or 1, listed.height or 1
    return x / across, y / down, width / across, height / down


def _category(number: Any, categories: Mapping[int | str, Any]) -> str:
    name = categories.get(number) if isinstance(number, int | str) else None
    if not isinstance(name, str):
        raise ValueError(f"a box of an unknown category, {number!r:.40}")
    return clean(name)


def _to_row(listed: Listed, boxed: bool, split: str) -> Row:
    return Row(
        captions=tuple(listed.captions),
        split=split,
        boxes=listed.boxes if boxed else None,
        box_labels=tuple(listed.labels),
        relative=listed.width > 0,
    )


def _join(row: Row, other: Row) -> Row:
    """What two files say of one picture: usually captions the one, boxes the other."""
    if row.boxes is None:
        row.boxes, row.box_labels, row.relative = other.boxes, other.box_labels, other.relative
    elif other.boxes and row.relative == other.relative:
        row.boxes, row.box_labels = row.boxes + other.boxes, row.box_labels + other.box_labels
    row.captions += other.captions
    row.split = row.split or other.split
    return row

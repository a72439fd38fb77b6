"""The index of a folder of pictures, or of tars of them, in all usual layouts.

Classes come from subfolders, a `label` in metadata, or `.cls` files; captions from `.txt` or
`.json` files beside the pictures, or a column of `metadata.jsonl` or `metadata.csv`; splits from
subfolders, names of tars, or a column. Only names, headers and texts are read; no picture is
decoded.

Dimensions: N pictures, H height, W width, C channels, M boxes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from posixpath import basename, dirname, isabs, join, normpath, splitext

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from triptych.data.disk.coco import annotation_files, coco_rows, is_coco
from triptych.data.disk.columns import Conditions, conditions
from triptych.data.disk.files import Place, is_picture, list_files, members, reason
from triptych.data.disk.index import Annotations, Index
from triptych.data.disk.rows import Row, metadata, row_beside
from triptych.data.disk.splits import KNOWN, canonical, split_in_name
from triptych.vision.images import Header, open_picture, read_header

HEAD = 1 << 16  # bytes, enough for the header of nearly every picture
BESIDE = ("txt", "json", "cls")
METADATA = ("metadata.jsonl", "metadata.csv")
MOSTLY = 0.9  # if this share of the pictures has captions or labels, the others are skipped


@dataclass(frozen=True)
class InFiles:
    """Pictures in files or in tars."""

    places: Sequence[Place]

    def load(self, row: int, channels: int, near: int | None) -> UInt8[np.ndarray, "H W C"]:
        return open_picture(self.places[row].read(), channels=channels, near=near)


@dataclass(slots=True)
class Sample:
    """A picture with a valid header."""

    name: str  # unique
    inner: str  # its path below the folder of its split
    place: Place
    header: Header
    row: Row
    split: str


def folder_index(root: Path) -> Index:
    """The index of a folder. Bad pictures are listed in `skipped` and are no error."""
    files, skipped = list_files(root)
    notes: list[str] = []
    pictures = [name for name in files if is_picture(name)]
    if splits := _folder_splits(pictures):
        pictures = _keep_listed(pictures, splits, "they are in no folder of a split", notes)
    tables = [name for name in files if basename(name) in METADATA]
    rows: dict[str, Row] = {}
    if tables:
        rows = _metadata_rows(tables, files, skipped)
        pictures = [name for name in pictures if name not in skipped]
        pictures = _keep_listed(pictures, rows, "the metadata file does not list them", notes)
    coco = coco_rows(annotation_files(files, pictures), pictures, skipped, notes)
    unread = {name: skipped.pop(name) for name in list(skipped) if _is_beside(name)}
    samples = []
    for name in pictures:
        stem = splitext(name)[0]
        texts = [f"{stem}.{ending}" for ending in BESIDE]
        try:
            if reasons := [unread[text] for text in texts if text in unread]:
                raise ValueError(f"the text file beside it cannot be read: {reasons[0]}")
            beside = {text.rpartition(".")[2]: files[text] for text in texts if text in files}
            row = row_beside(beside) if beside else Row()
            row = _merge_rows(rows.get(name), _merge_rows(coco.get(name), row))
            header = read_place_header(files[name])
        except (ValueError, OSError) as error:
            skipped.setdefault(name, reason(error))
            continue
        split = splits.get(name, "")
        inner = name.partition("/")[2] if split else basename(name) if name in coco else name
        split = canonical(row.split) or split
        samples.append(Sample(name, inner, files[name], header, row, split))
    form = ", ".join(["folder", *sorted({basename(table) for table in tables})])
    return build_index(root.resolve().name, form, samples, skipped, notes)


def tar_index(source: str, shards: Sequence[Path], beside: Mapping[str, Place]) -> Index:
    """The index of webdataset tars, where consecutive files of one name are one sample; `beside`
    are COCO's annotation files.

    Bad samples are listed in `skipped`, as in `folder_index`.

    Raises:
        ValueError: a tar is compressed or damaged.
    """
    samples: dict[str, Sample] = {}
    skipped: dict[str, str] = {}
    for shard in shards:
        split = split_in_name(shard.name.removesuffix(".tar"))
        for stem, group in groupby(members(shard), key=lambda member: _stem(member[0])):
            files: dict[str, Place] = {}
            picture = ""
            for member, place in group:
                ending = member[len(stem) + 1 :].lower()
                if isinstance(place, str):
                    skipped[f"{shard.name}/{member}"] = place
                elif ending in files or (is_picture(member) and picture):
                    skipped[f"{shard.name}/{member}"] = (
                        "a second file of the same kind in one sample"
                    )
                elif is_picture(f"x.{ending}"):
                    picture, files["picture"] = member, place
                elif ending in BESIDE:
                    files[ending] = place
            if not picture:
                if files:
                    skipped.setdefault(f"{shard.name}/{stem}", "a text without a picture")
                continue
            place, name = files.pop("picture"), f"{shard.name}/{picture}"
            if name in samples:
                skipped[f"{name} again"] = "a second file of the same name"
                continue
            try:
                row, header = row_beside(files) if files else Row(), read_place_header(place)
            except (ValueError, OSError) as error:
                skipped[name] = reason(error)
                continue
            samples[name] = Sample(name, picture, place, header, row, split)
    notes: list[str] = []
    for name, row in coco_rows(beside, samples, skipped, notes).items():
        sample = samples[name]
        sample.row = _merge_rows(row, sample.row)
        sample.split = sample.split or canonical(row.split)
    form = f"{len(shards)} webdataset tar{'s' if len(shards) > 1 else ''}"
    good = [sample for name, sample in samples.items() if name not in skipped]
    return build_index(source, form, good, skipped, notes)


def build_index(
    name: str, form: str, samples: list[Sample], skipped: dict[str, str], notes: list[str]
) -> Index:
    """One index of all splits, so that class numbers and attributes mean the same in each."""
    expected = {"caption": [bool(f.row.captions) for f in samples]}
    if all(f.row.boxes is None for f in samples):
        blank = [f for f in samples if f.row.blank and not f.row.captions]
        skipped |= {f.name: "an empty caption" for f in blank}
        expected["caption"] = [bool(f.row.captions) for f in samples]
    expected["label"] = [f.row.label is not None for f in samples]
    for what, has in expected.items():
        if MOSTLY * len(has) <= sum(has) < len(has):
            lacking = [f for f, h in zip(samples, has, strict=True) if not h]
            skipped.update({f.name: f"no {what}" for f in lacking if f.name not in skipped})
        elif 0 < sum(has) < len(has):
            notes.append(
                f"only {sum(has):,} of {len(has):,} pictures have a {what}: it is ignored for all"
            )
    samples = [f for f in samples if f.name not in skipped]
    columns = conditions([f.row.columns or {} for f in samples])
    missing = np.isnan(columns.vector_values)
    for row in np.flatnonzero(missing.any(axis=1)):
        names = [name for name, gone in zip(columns.vector, missing[row], strict=True) if gone]
        skipped[samples[row].name] = f"no number for {', '.join(names)}"
    complete = ~missing.any(axis=1)
    samples = [f for f, usable in zip(samples, complete, strict=True) if usable]
    annotations = _annotations(samples, columns, complete)
    forms = [
        form,
        *(["captions"] if annotations.captions else []),
        *(["boxes"] if annotations.boxes else []),
    ]
    return Index(
        name=name,
        form=", ".join(forms),
        stored=InFiles([f.place for f in samples]),
        names=[f.name for f in samples],
        sizes=np.array([f.header[1:3] for f in samples], np.int32).reshape(-1, 2),
        grey=np.array([f.header.grey for f in samples], np.bool_),
        splits=[f.split for f in samples],
        annotations=annotations,
        skipped=skipped,
        notes=(*notes, *columns.notes),
    )


def _annotations(
    samples: Sequence[Sample], columns: Conditions, complete: np.ndarray
) -> Annotations:
    classes, labels = _classes(samples)
    boxes = any(f.row.boxes is not None for f in samples)
    return Annotations(
        classes=classes,
        labels=labels,
        attributes=columns.attributes,
        attribute_values=columns.attribute_values[complete] if columns.attributes else None,
        vector=columns.vector,
        vector_values=columns.vector_values[complete] if columns.vector else None,
        captions=[f.row.captions for f in samples]
        if all(f.row.captions for f in samples)
        else None,
        boxes=[_boxes(f) for f in samples] if boxes else None,
        box_labels=[f.row.box_labels for f in samples] if boxes else None,
    )


def _classes(samples: Sequence[Sample]) -> tuple[tuple[str, ...], Int64[np.ndarray, " N"] | None]:
    """The labels of the rows, else the first subfolder if every picture is in one of several."""
    labels: list[str | int | None] = [f.row.label for f in samples]
    if None in labels:
        labels = [f.inner.partition("/")[0] if "/" in f.inner else None for f in samples]
        if None in labels or len(set(labels)) < 2:
            return (), None
    texts = [str(label) for label in labels]
    numbers = all(text.isdecimal() for text in texts)
    names = sorted(set(texts), key=(lambda text: (int(text), text)) if numbers else None)
    place = {name: number for number, name in enumerate(names)}
    return tuple(names), np.array([place[text] for text in texts], np.int64)


def _boxes(sample: Sample) -> Float32[np.ndarray, "M 4"]:
    """Top left and bottom right corners, relative to the picture and clipped to it."""
    boxes = np.array(sample.row.boxes or [], np.float64).reshape(-1, 4)
    if not sample.row.relative:
        boxes /= np.array([sample.header.width, sample.header.height] * 2)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return corners.clip(0, 1).astype(np.float32)


def _folder_splits(pictures: Iterable[str]) -> dict[str, str]:
    """The split of each picture by its first folder, if those folders are splits."""
    tops = {name.split("/")[0] for name in pictures if "/" in name}
    splits = {top: canonical(top) for top in tops if top.lower() in KNOWN}
    if "train" not in splits.values() and len(splits) < max(1, len(tops)):
        return {}  # a class may be called `test`
    return {n: splits[n.split("/")[0]] for n in pictures if "/" in n and n.split("/")[0] in splits}


def _keep_listed(
    pictures: list[str], listed: Mapping[str, object], why: str, notes: list[str]
) -> list[str]:
    """The pictures that are listed, with a note of how many are not."""
    kept = [name for name in pictures if name in listed]
    if ignored := len(pictures) - len(kept):
        notes.append(f"{ignored:,} pictures are ignored: {why}")
    return kept


def _is_beside(name: str) -> bool:
    return name.rpartition(".")[2].lower() in BESIDE and not is_coco(name)


def _metadata_rows(
    tables: Iterable[str], files: Mapping[str, Place], skipped: dict[str, str]
) -> dict[str, Row]:
    """Rows by the picture's name. A name is only compared with those of the files, never opened."""
    rows: dict[str, Row] = {}
    bad: dict[str, str] = {}  # pictures whose rows cannot be used
    for table in tables:
        for file_name, row in metadata(table, files[table]):
            name = normpath(join(dirname(table), file_name))
            there = name in files and is_picture(name)
            fault = ""
            if isinstance(row, str) and not there:
                fault = row
            elif isabs(file_name) or name.startswith("..") or "\0" in name:
                fault = "a path that leads outside the folder"
            elif name in rows or name in bad:
                fault = "a second row for one picture (write several captions as one list)"
            elif isinstance(row, str):
                bad[name] = row
            elif there:
                rows[name] = row
            elif name not in skipped:
                fault = "listed in the metadata, but the file does not exist"
            if fault:
                skipped[f"{table}: {file_name}"] = fault
    skipped.update(bad)
    return rows


def _merge_rows(row: Row | None, beside: Row) -> Row:
    """A row of metadata, completed by the files beside the picture."""
    if row is None:
        return beside
    row.captions = row.captions or beside.captions
    row.label = beside.label if row.label is None else row.label
    row.split = row.split or beside.split
    row.columns = {**(beside.columns or {}), **(row.columns or {})} or None
    if row.boxes is None:
        row.boxes, row.box_labels, row.relative = beside.boxes, beside.box_labels, beside.relative
    return row


def read_place_header(place: Place) -> Header:
    """The header of a picture. ValueError or OSError if it has none, or cannot be read."""
    head = place.head(HEAD)
    try:
        return read_header(head)
    except ValueError:
        if len(head) < HEAD:
            raise
        return read_header(place.read())  # a long colour profile or preview comes before the size


def _stem(member: str) -> str:
    """Everything before the first dot of the file name, as in webdataset."""
    folder, _, file = member.rpartition("/")
    return f"{folder}/{file.split('.')[0]}" if folder else file.split(".")[0]

"""Sources of pictures by name, the same everywhere: `digits`, `scenes`, or a path."""

import re
from difflib import get_close_matches
from pathlib import Path

from triptych.data.digits import digits_index
from triptych.data.disk.array_files import array_folder, npz_index
from triptych.data.disk.coco import annotations_beside
from triptych.data.disk.files import is_picture, shards
from triptych.data.disk.folder import folder_index, tar_index
from triptych.data.disk.index import Index
from triptych.data.disk.pairs import pairs_index
from triptych.data.disk.table import select_split
from triptych.data.names import BUILT_IN, SCENES
from triptych.data.source import Source
from triptych.fields import nearest

TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2|txz)$", re.I)  # compressed ones are refused by name


def open_source(
    name: str, *, split: str = "train", size: int | None = None, channels: int | None = None
) -> Source:
    """Open a source of pictures.

    Args:
        name: `digits`, `scenes` (up to four objects; `scenes-one` and `scenes-two` are easier), or
            a path: a folder of pictures, of tars, or with MNIST's or CIFAR's files; a `.tar`, or a
            range of them such as `shard-{000..012}.tar`; an `.npz`.
        size: side of the square pictures; None keeps the size that all of them have.
        channels: 1 or 3; None is 1 if all pictures are grey.

    Raises:
        ValueError: there is no such source or split, pictures of several sizes without `size`, or
            more than a tenth of the pictures cannot be used.
    """
    if name in SCENES:
        from triptych.data.scene_source import SceneSource

        return SceneSource(name, split=split, size=size, channels=channels)
    return select_split(open_index(name), split, size, channels)


def open_train_and_test(name: str, *, size: int | None = None) -> tuple[Source, Source]:
    """Both splits of a source as `open_source` opens them, reading its files only once."""
    if name in SCENES:
        return open_source(name, size=size), open_source(name, split="test", size=size)
    index = open_index(name)
    return select_split(index, "train", size, None), select_split(index, "test", size, None)


def open_index(name: str) -> Index:
    """The index of a finite source, all splits together. ValueError as `open_source`."""
    if name == "digits":
        return digits_index()
    paths = shards(name)
    for path in paths:
        if not path.exists():
            raise ValueError(f"no source {name!r}: {_why_missing(path)}")
    path = paths[0]
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return npz_index(path)
    if path.is_file() and path.suffix.lower() == ".jsonl":
        return pairs_index(path)
    if path.is_file() and TAR.search(path.name):
        return tar_index(Path(name).name, paths, annotations_beside(path.parent))
    raise ValueError(
        f"{path} is not a source of pictures: a folder, a .tar, an .npz or a .jsonl of "
        "questions is needed"
    )


def _open_folder(folder: Path) -> Index:
    if (index := array_folder(folder)) is not None:
        return index
    files = sorted(path for path in folder.iterdir() if path.is_file())
    tars = [path for path in files if TAR.search(path.name)]
    root = folder.resolve()
    inside = [path for path in tars if path.resolve().is_relative_to(root)]
    if inside and not any(is_picture(path.name) for path in files):
        return tar_index(root.name, inside, annotations_beside(folder))
    return folder_index(folder)


def _why_missing(path: Path) -> str:
    """The end of an error message on a path that does not exist, with the nearest name."""
    if len(path.parts) == 1:
        hint = nearest(path.name, BUILT_IN)
        if hint:
            return f"the built-in sources are {', '.join(BUILT_IN)}.{hint}"
    parent = path.parent
    beside = [other.name for other in parent.iterdir()] if parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1)
    hint = f" Did you mean {str(parent / close[0])!r}?" if close else ""
    return f"the path does not exist, and the built-in sources are {', '.join(BUILT_IN)}.{hint}"

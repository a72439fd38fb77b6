"""Sources of pictures by name, the same everywhere: `digits`, `scenes`, or a path."""

import re
from difflib import get_close_matches
from pathlib import Path

from triptych.config import nearest
from triptych.data.digits import digits_index
from triptych.data.disk.array_files import array_folder, npz_index
from triptych.data.disk.files import is_picture, shards
from triptych.data.disk.folder import folder_index, tar_index
from triptych.data.disk.index import Index
from triptych.data.disk.table import select
from triptych.data.source import Source

SCENES = ("scenes", "scenes-one", "scenes-two")
BUILT_IN = ("digits", *SCENES)
TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2|txz)$", re.I)  # compressed ones are refused by name


def open_source(
    name: str, *, split: str = "train", size: int | None = None, channels: int | None = None
) -> Source:
    """Open a source of pictures.

    `name` is `digits`, `scenes` (up to four objects; `scenes-one`, `scenes-two` are easier), or a
    path: a folder, a `.tar` or a range of them such as `shard-{000..012}.tar`, a folder of tars,
    a folder with MNIST's or CIFAR's files, an `.npz`. `size` is the side of the square pictures,
    None for the source's own size; `channels` is 1 or 3, None for 1 where all pictures are grey.

    Raises ValueError where there is no such source or split, where pictures differ in size and no
    `size` is given, and where more than a tenth of the pictures cannot be used.
    """
    if name in SCENES:
        from triptych.data.scene_source import SceneSource

        return SceneSource(name, split=split, size=size, channels=channels)
    return select(open_index(name), split, size, channels)


def open_train_and_test(name: str, *, size: int | None = None) -> tuple[Source, Source]:
    """Both splits of a source as `open_source` opens them, its files looked at once."""
    if name in SCENES:
        return open_source(name, size=size), open_source(name, split="test", size=size)
    index = open_index(name)
    return select(index, "train", size, None), select(index, "test", size, None)


def open_index(name: str) -> Index:
    """The table of a finite source, all its splits together. Raises ValueError as `open_source`."""
    if name == "digits":
        return digits_index()
    paths = shards(name)
    for path in paths:
        if not path.exists():
            raise ValueError(f"no source {name!r}: {_no_such(path)}")
    path = paths[0]
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return npz_index(path)
    if path.is_file() and TAR.search(path.name):
        return tar_index(Path(name).name, paths)
    raise ValueError(f"{path} is not a folder, a .tar or an .npz: no source of pictures")


def _open_folder(folder: Path) -> Index:
    if (index := array_folder(folder)) is not None:
        return index
    files = sorted(path for path in folder.iterdir() if path.is_file())
    tars = [path for path in files if TAR.search(path.name)]
    root = folder.resolve()
    inside = [path for path in tars if path.resolve().is_relative_to(root)]
    if inside and not any(is_picture(path.name) for path in files):
        return tar_index(root.name, inside)
    return folder_index(folder)


def _no_such(path: Path) -> str:
    """What is wrong with a path, with the nearest name that is right."""
    if len(path.parts) == 1:
        hint = nearest(path.name, BUILT_IN)
        if hint:
            return f"the built-in ones are {', '.join(BUILT_IN)}.{hint}"
    parent = path.parent
    beside = [other.name for other in parent.iterdir()] if parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1)
    hint = f" Did you mean {str(parent / close[0])!r}?" if close else ""
    return f"nothing is at that path, and the built-in ones are {', '.join(BUILT_IN)}.{hint}"

"""Sources of pictures by name, the same everywhere: `digits`, `scenes`, or a path."""

from pathlib import Path

from triptych.config import nearest
from triptych.data.digits import digits_index
from triptych.data.index import Index
from triptych.data.source import Source
from triptych.data.table import select

SCENES = ("scenes", "scenes-one", "scenes-two")
BUILT_IN = ("digits", *SCENES)


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
        from triptych.data.scenes import SceneSource

        return SceneSource(name, split=split, size=size, channels=channels)
    return select(open_index(name), split, size, channels)


def open_index(name: str) -> Index:
    """The table of a finite source, all its splits together. Raises ValueError as `open_source`."""
    if name == "digits":
        return digits_index()
    path = Path(name).expanduser()
    if not path.exists():
        hint = nearest(name, BUILT_IN)
        raise ValueError(
            f"no source {name!r}: neither {', '.join(BUILT_IN)} nor a path here.{hint}"
        )
    from triptych.data.array_files import array_folder as idx_index

    index = idx_index(path)
    assert index is not None
    return index

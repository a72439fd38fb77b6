"""Pictures as people give them to a request: a path, a PIL picture, a numpy array or a tensor.

A request keeps a path as a text and copies anything else, as 8-bit pixels, into a
`triptych.given.InMemory`. The array of one picture is

- uint8 of 0 to 255, floats of 0 to 1, or booleans (a mask);
- (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels C, the fourth of which is transparency and
  is laid on white. A numpy array that could be either is (H, W, C); such a tensor is refused.

No torch and no numpy here: `vision/pixels.py` is imported for pictures in memory only.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from triptych.given import InMemory, Names, take_path

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    Array = np.ndarray | Tensor
    Picture = str | os.PathLike[str] | Image | Array | None
    Pictures = Sequence[Picture]
else:  # what a request keeps, which is what the command line and JSON give
    Picture = Annotated[str, Names.PICTURE]
    Pictures = tuple[Picture, ...]


def take_picture(name: str, given: Any) -> str:
    """A picture as a request keeps it; empty for none.

    Raises:
        ValueError: it is no picture, or its values or axes are not as described above.
    """
    if (path := take_path(given)) is not None:
        return path
    return cast(str, import_module("triptych.vision.pixels").keep(name, given))


def take_pictures(name: str, given: Any) -> tuple[str, ...]:
    """Pictures as a request keeps them: of a list, of one picture, or of an array of several.

    Raises:
        ValueError: as `take_picture`; the message says which.
    """
    if given is None:
        return ()
    if isinstance(given, str | os.PathLike):
        return (take_picture(name, given),)
    several = given
    if not isinstance(given, list | tuple):
        several = import_module("triptych.vision.pixels").split(name, given)
    kept = tuple(take_picture(f"{name}[{number}]", one) for number, one in enumerate(several))
    if "" in kept:
        number = kept.index("")
        raise ValueError(f"{name}[{number}] is {given[number]!r}: give a picture, or leave it out")
    return kept


def kept_pictures(pictures: Any) -> tuple[str, ...]:
    """The pictures of a request, which has taken them: each is a path or an `InMemory`."""
    return cast("tuple[str, ...]", pictures)


def picture_name(picture: "Picture") -> str:
    """The file name of a picture; of one in memory its short name, such as memory:64x48."""
    if isinstance(picture, InMemory):
        return picture.rpartition(":")[0]
    return Path(str(picture)).name

"""Pictures of any form as 8-bit pixels, checked; see `vision/given_pictures.py` for the forms.

Dimensions: H height, W width, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from triptych.given import InMemory, is_lost, lost_value, name_in_memory
from triptych.vision.given_pictures import take_pictures
from triptych.vision.images import open_picture, upright_pixels
from triptych.vision.limits import check_size

CHANNELS = (1, 3, 4)
ROUNDING = 1e-3  # by which floats may miss 0 and 1


def keep(name: str, given: Any) -> InMemory:
    """A copy of a picture in memory, named by its size and digest.

    Raises:
        ValueError: as `to_pixels`.
    """
    pixels = to_pixels(name, given)
    return name_in_memory(pixels, (pixels.shape[1], pixels.shape[0]))


def name_files(request: Any, *fields: str) -> dict[str, str]:
    """The pictures that a request reads from files, by field, each as it would be named in memory:
    for the record of a result, so that a replay notices another picture of the same file name.

    Raises:
        ValueError: as `read_named`.
    """
    given = {name: getattr(request, name) for name in fields}
    files = {n: file for n, file in given.items() if file and not isinstance(file, InMemory)}
    return {name: str(keep(name, read_named(name, file))) for name, file in files.items()}


def read_picture(
    name: str, picture: Any, *, channels: int | None = None, near: int | None = None
) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of a picture as a request keeps it: a path, or one in memory.

    `channels` and `near` are those of `open_picture`.

    Raises:
        ValueError: as `open_picture`, or the picture is no longer in memory.
        OSError: the file cannot be read.
    """
    if is_lost(picture):
        raise ValueError(lost_value(name, picture))
    if not isinstance(picture, InMemory):
        return open_picture(Path(picture), channels=channels, near=near)
    pixels: np.ndarray = picture.values
    if channels in (None, pixels.shape[2]):
        return pixels
    return upright_pixels(_to_pil(pixels), channels)


def read_named(
    name: str, picture: Any, *, channels: int | None = None
) -> UInt8[np.ndarray, "H W C"]:
    """As `read_picture`, with errors that begin with the field and the path.

    Raises:
        ValueError: there is no such file, or it is no sound picture.
    """
    try:
        return read_picture(name, picture, channels=channels)
    except (ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} {picture}: {why}") from error


def read_pictures(name: str, pictures: Any) -> list[UInt8[np.ndarray, "H W 3"]]:
    """The pixels of pictures in any of the forms.

    Raises:
        ValueError: as `read_named`; `name` and a number say which.
    """
    if isinstance(pictures, list | tuple) and all(map(_is_read, pictures)):
        return list(pictures)
    if pictures is None:
        raise ValueError(f"{name} is a list of pictures, not None")
    taken = enumerate(take_pictures(name, pictures))
    return [read_named(f"{name}[{number}]", one, channels=3) for number, one in taken]


def _is_read(picture: Any) -> bool:
    is_bytes = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
    return is_bytes and picture.ndim == 3 and picture.shape[2] == 3 and picture.size > 0


def to_pixels(name: str, given: Any) -> UInt8[np.ndarray, "H W C"]:
    """A picture in memory as pixels of its own, with one or three channels.

    Raises:
        ValueError: it is no picture, or its values or axes are others; `name` says which it is.
    """
    if isinstance(given, Image.Image) and given.mode == "I":
        raise ValueError(f"{name} is of PIL's mode I, which has no range: convert it to L or F")
    if isinstance(given, Image.Image) and given.mode != "F":  # whose floats have no range, either
        _check_size(name, given.height, given.width)
        try:
            given.load()
            return np.array(upright_pixels(given, None))
        except Exception as error:  # whatever PIL raises on a damaged file not decoded yet
            raise ValueError(f"{name} cannot be read by PIL: {error}") from None
    array = to_array(name, given)
    array = _channels_last(name, array, tensor=isinstance(given, Tensor))
    _check_size(name, *array.shape[:2])
    return np.array(upright_pixels(_to_pil(_to_bytes(name, array)), None))


def split(name: str, given: Any) -> Sequence[Any]:
    """The pictures of an array of several (four axes), or one picture.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(given, Image.Image) and not hasattr(given, "shape"):
        raise ValueError(
            f"{name} is a list of pictures (paths, PIL pictures, numpy arrays, tensors), not "
            f"{type(given).__name__}"
        )
    return list(given) if len(getattr(given, "shape", ())) == 4 else [given]


def to_pil(pictures: UInt8[np.ndarray, "N H W C"]) -> list[Image.Image]:
    """Pictures as PIL's; with one channel they are grey."""
    return [_to_pil(picture) for picture in pictures]


def _to_pil(pixels: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_array(name: str, given: Any) -> np.ndarray:
    """A numpy array of what has values and axes.

    Raises:
        ValueError: it has none, or they cannot be read, such as those of a sparse tensor.
    """
    if isinstance(given, Tensor):
        try:
            given = given.detach().cpu()
            return np.asarray(given.float() if given.is_floating_point() else given)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"{name} is a tensor that cannot be read: {error}") from None
    if isinstance(given, np.ndarray):
        return given
    if isinstance(given, Image.Image) or (hasattr(given, "__array__") and hasattr(given, "shape")):
        return np.asarray(given)
    kind = "None" if given is None else type(given).__name__
    raise ValueError(f"{name} is a path, a PIL picture, a numpy array or a tensor, not {kind}")


def _channels_last(name: str, array: np.ndarray, *, tensor: bool) -> np.ndarray:
    """The array as (H, W, C)."""
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        return array[:, :, None]
    forms = "(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
    if array.ndim != 3:
        several = f": it has {shape[0]} pictures, give one" if array.ndim == 4 else ""
        raise ValueError(f"{name} has the shape {shape}, not {forms}{several}")
    first, last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
    if tensor and first and last:
        raise ValueError(
            f"{name} has the shape {shape}, which is (C, H, W) or (H, W, C): give a numpy array "
            "(H, W, C) instead of a tensor"
        )
    if not first and not last:
        raise ValueError(f"{name} has the shape {shape}, not {forms}")
    return array if last else array.transpose(1, 2, 0)


def _to_bytes(name: str, array: np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    """The values as 0 to 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} has values of {array.dtype}: give uint8, 0 to 255, or floats")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite: floats are 0 to 1")
    low, high = float(array.min()), float(array.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        way = "(x + 1) / 2 brings -1 to 1 there" if low >= -1 and high <= 1 else "or give uint8"
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g}: floats are 0 to 1; {way}"
        )
    return (array * np.float32(255)).round().clip(0, 255).astype(np.uint8)


def _check_size(name: str, height: int, width: int) -> None:
    try:
        check_size(width, height)
    except ValueError as error:
        raise ValueError(f"{name} has {error}") from None

"""Latents that a request starts from in place of the seed's noise: an array, a tensor or a file.

They are standard normal, as `triptych.runtime.noise` draws them, not yet multiplied by the first
noise level: sampling does that, as diffusers' pipelines do with their `latents`.

Dimensions: N pictures, Z latent channels, h w latent sides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from triptych.given import InMemory, is_lost, lost_value, name_in_memory
from triptych.vision.pixels import to_array

FORMS = "(pictures, channels, height, width), or without the first for one picture"


def keep(given: Any) -> InMemory:
    """A copy of latents in memory, named by their shape and digest.

    Raises:
        ValueError: as `to_latents`.
    """
    if isinstance(given, InMemory):
        return given
    latents = to_latents("latents", given)
    return name_in_memory(latents, latents.shape)


def read_latents(latents: Any, count: int, shape: Sequence[int]) -> Float32[Tensor, "N Z h w"]:
    """The latents of a request for `count` pictures, whose latents have the shape (Z, h, w).

    Raises:
        ValueError: they have another shape, the file has none, or they are no longer in memory.
    """
    found = open_latents(latents)
    expected = (count, *shape)
    if found.shape != expected:
        raise ValueError(
            f"latents have the shape {found.shape}; this request needs {expected}: {FORMS}"
        )
    return torch.tensor(found)


def open_latents(latents: Any) -> Float32[np.ndarray, "N Z h w"]:
    """The values of latents as a request keeps them: a path, or latents in memory.

    Raises:
        ValueError: the file has none, or they are no longer in memory.
    """
    if is_lost(latents):
        raise ValueError(lost_value("latents", latents))
    if isinstance(latents, InMemory):
        return np.asarray(latents.values)
    path = Path(latents)
    if not path.is_file():
        raise ValueError(f"latents {path}: there is no such file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # checks the size by the file's
    except Exception:  # whatever numpy raises on a file that it did not write
        raise ValueError(
            f"latents {path}: not an .npy file of numbers, as numpy.save writes"
        ) from None
    return to_latents(f"latents {path}", array)


def to_latents(name: str, given: Any) -> Float32[np.ndarray, "N Z h w"]:
    """Latents in memory as a float32 array of its own, with four axes.

    Raises:
        ValueError: they are no array of floats, or have other axes.
    """
    if isinstance(given, Tensor):
        given = to_array(name, given)
    if not isinstance(given, np.ndarray):
        kind = "None" if given is None else type(given).__name__
        raise ValueError(f"{name} are a numpy array, a tensor or an .npy file, not {kind}")
    if not np.issubdtype(given.dtype, np.floating):
        raise ValueError(f"{name} have values of {given.dtype}: they are floats, standard normal")
    latents = np.array(given[None] if given.ndim == 3 else given, np.float32)
    if latents.ndim != 4 or not latents.size:
        raise ValueError(f"{name} have the shape {given.shape}, not {FORMS}")
    if not np.isfinite(latents).all():
        raise ValueError(f"{name} have values that are not finite")
    return latents

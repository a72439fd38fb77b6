"""Triptych: conditional and multimodal generative models.

    import triptych
    from triptych.requests import ClassToImage, Classify

    model = triptych.load("runs/demo", device="auto")               # a run folder
    *_, result = triptych.run(ClassToImage(label=7, n=4), model)    # or by its name, model=...
    result.images, result.pictures                                  # of PIL; uint8 (4, H, W, C)
    clip = triptych.load("runs/clip", precision="float32").to("cuda")
    *_, found = triptych.run(Classify(["fox.jpg", result.images[0]], ["fox", "dog"]), clip)
    found.probabilities()                                           # (pictures, labels)

Importing the package loads no torch; the first use does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, which takes longer to import than this file
if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Any

    import torch

    from triptych.weights.loaded import Loaded

__all__ = ["load", "recall", "run"]


def load(
    name: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: str | torch.dtype = "auto",
) -> Loaded:
    """A model with what is needed to use it: a run folder, a published checkpoint, or its name.

    `device` is cpu, cuda, ..., or auto: an accelerator where there is one. `precision` is float32,
    bfloat16, float16 or a dtype of torch, `stored` for that of the file, or auto: what the device
    computes fastest. `Loaded.to` changes both later.

    Raises:
        ValueError: there is no such model, device or precision, or the model's files are damaged or
            do not fit together.
    """
    from triptych.loading import load_precisely

    return load_precisely(name, device, precision)


def run(request: Any, loaded: Loaded | None = None) -> Iterator[Any]:
    """Carry out a request step by step; the last item that it yields is the whole result.

    `loaded` is a model that is already there, in place of the one that the request names.

    Raises:
        ValueError: something that is no request, or a request that cannot be carried out.
    """
    from triptych import running

    return running.run(request, loaded)


def recall(source: Any, **given: Any) -> Any:
    """The request that drew a picture file, or one read from JSON, ready to run again.

    Pictures and latents that were in memory are not in the record, only their digests: give the
    same ones again by the names of their fields, as in `recall("0000-7.png", image=photo)`. Other
    fields that are given, such as `model`, replace what is recorded.

    Raises:
        ValueError: there is no record, a picture is missing, or it is another one.
    """
    from triptych import running

    return running.recall(source, **given)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("triptych")
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")

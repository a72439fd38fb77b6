"""Triptych: conditional and multimodal generative models.

    import triptych
    from triptych.requests import ClassToImage, Classify

    model = triptych.load("runs/demo")                                  # a run folder
    *_, result = triptych.run(ClassToImage("runs/demo", label="7", n=4))  # uint8 result.pictures
    *_, found = triptych.run(Classify(("fox.jpg",), ("fox", "dog"), model="runs/clip"))
    found.probabilities()                                                 # (pictures, labels)

Importing the package loads no torch; the first use does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, which takes longer to import than this file
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from triptych.weights.loaded import Loaded

__all__ = ["load", "run"]


def load(name: str, device: str = "cpu") -> Loaded:
    """A trained model with what is needed to use it, by the name of its run folder.

    Raises:
        ValueError: there is no such model, or its files are damaged or do not fit together.
    """
    from triptych.loading import load as load_model

    return load_model(name, device)


def run(request: Any, loaded: Loaded | None = None) -> Iterator[Any]:
    """Carry out a request step by step; the last item that it yields is the whole result.

    `loaded` is a model that is already there, in place of the one that the request names.

    Raises:
        ValueError: something that is no request, or a request that cannot be carried out.
    """
    from triptych import running

    return running.run(request, loaded)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("triptych")
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")

"""Triptych: conditional and multimodal generative models.

    import triptych
    from triptych.pipelines.detect import Detections
    from triptych.requests import ClassToImage, Detect

    model = triptych.load("runs/demo")                                  # a run folder
    *_, result = triptych.run(ClassToImage("runs/demo", label="7", n=4))  # uint8 result.pictures

Importing the package loads no torch; the first use does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, which takes longer to import than this file
if TYPE_CHECKING:
    from collections.abc import Iterator

    from triptych.pipelines.class_to_image import Pictures
    from triptych.pipelines.detect import Detections
    from triptych.requests import ClassToImage, Detect
    from triptych.weights.load import Loaded

__all__ = ["load", "run"]


def load(name: str, device: str = "cpu") -> Loaded:
    """A trained model with what is needed to use it, by the name of its run folder.

    Raises:
        ValueError: there is no such model, or its files are damaged or do not fit together.
    """
    from triptych.weights.load import load as load_run

    return load_run(name, device)


PIPELINES = {"ClassToImage": "class_to_image", "Detect": "detect"}
"""The module of `triptych.pipelines` that carries out a request, by the request's name."""


def run(
    request: ClassToImage | Detect, loaded: Loaded | None = None
) -> Iterator[Pictures] | Iterator[Detections]:
    """Carry out a request step by step; the last item that it yields is the whole result."""
    from importlib import import_module

    name = PIPELINES.get(type(request).__name__)
    if name is None:
        raise ValueError(
            f"{type(request).__name__} is no request; there are {', '.join(PIPELINES)}"
        )
    work: Iterator[Pictures] = import_module(f"triptych.pipelines.{name}").run(request, loaded)
    return work


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("triptych")
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")

"""The trained run that a system's report evaluates."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from triptych.data.source import Source
from triptych.train.settings import TrainRequest
from triptych.weights.loaded import Load, Loaded

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainedRun:
    """The argument of `evaluate(options, run)` of a system's report."""

    request: TrainRequest
    """What it was trained with."""
    loaded: Loaded
    """The model, in float32, so that figures compare between machines."""
    train: Source
    test: Source
    run: Path
    """The run folder."""
    folder: Path
    """Where figures and plots are written."""
    command: str
    """The command that gives the figures, which is written beside them."""
    seed: int
    load: Load
    """Loads a second model, such as a CLIP to score pictures with."""
    train_model: Callable[[TrainRequest, Path, str], Loaded]
    """Trains a request in a run folder, continues it or takes it as it is; the text names it in
    messages.
    """


def indent(work: Generator[str, None, Result]) -> Generator[str, None, Result]:
    """The same messages, indented as details, and the same result."""
    while True:
        try:
            message = next(work)
        except StopIteration as done:
            result: Result = done.value
            return result
        yield f"  {message}"

"""Carries out any request: loads its model and calls the pipeline of its system."""

from collections.abc import Iterator
from typing import Any

import torch

from triptych import loading
from triptych.systems import find_pipeline
from triptych.weights.loaded import Loaded


def run(request: Any, loaded: Loaded | None = None) -> Iterator[Any]:
    """Carry out a request step by step; the last item is the complete result.

    `loaded` replaces the model that the request names.

    Raises:
        ValueError: not a request, or one that cannot be carried out.
    """
    system = find_pipeline(request)

    def load(name: str, device: torch.device | str = "cpu", dtype: str = "auto") -> Loaded:
        if loaded is not None and name == request.model:
            return loaded
        return loading.load(name, device, dtype)

    steps: Iterator[Any] = system.module("pipeline").run(request, load)
    return steps

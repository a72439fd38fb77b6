"""Any request carried out: the model is loaded and the request goes to its system's pipeline."""

from collections.abc import Iterator
from typing import Any

import torch

from triptych import loading
from triptych.systems import find_pipeline
from triptych.weights.loaded import Loaded


def run(request: Any, loaded: Loaded | None = None) -> Iterator[Any]:
    """Carry out a request step by step; the last item that it yields is the whole result.

    `loaded` is a model that is already there, in place of the one that the request names.

    Raises:
        ValueError: something that is no request, or a request that cannot be carried out.
    """
    system = find_pipeline(request)

    def load(name: str, device: torch.device | str = "cpu", dtype: str = "auto") -> Loaded:
        if loaded is not None and name == request.model:
            return loaded
        return loading.load(name, device, dtype)

    steps: Iterator[Any] = system.module("pipeline").run(request, load)
    return steps

"""Models without numbers: parameters have shapes only, until a checkpoint gives them values."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)

DRAWS = {torch.randn: torch.empty, torch.rand: torch.empty}
IN_PLACE = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)
SCALED = (Tensor.mul, Tensor.__mul__, Tensor.__rmul__)


class _Undrawn(TorchFunctionMode):
    """Skips the drawing of first weights, which a checkpoint replaces.

    There is nothing to draw without numbers, yet torch finds the shapes of these few operations in
    Python, and for that imports its compiler and sympy: more time than loading a CLIP takes.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in IN_PLACE:
            return args[0] if args else kwargs["tensor"]
        if function in SCALED and not isinstance(args[1], Tensor):
            return args[0]
        return DRAWS.get(function, function)(*args, **kwargs)


def skeleton(build: Callable[[], Model]) -> Model:
    """The module that `build` makes, on the meta device: no memory, no numbers, no time."""
    with torch.device("meta"), _Undrawn():
        return build()

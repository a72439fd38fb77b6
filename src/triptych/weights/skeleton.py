"""Modules on the meta device: parameters have shapes but no values until a checkpoint is loaded."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)

RANDOM = {torch.randn: torch.empty, torch.rand: torch.empty}
IN_PLACE = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)
SCALED = (Tensor.mul, Tensor.__mul__, Tensor.__rmul__)


class _SkipInitialisation(TorchFunctionMode):
    """Skips random initialisation, which a checkpoint replaces anyway.

    On the meta device torch infers the shapes of these few operations in Python, and for that
    imports its compiler and sympy, which takes longer than loading a CLIP.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in IN_PLACE:
            return args[0] if args else kwargs["tensor"]
        if function in SCALED and not isinstance(args[1], Tensor):
            return args[0]
        return RANDOM.get(function, function)(*args, **kwargs)


def skeleton(build: Callable[[], Model]) -> Model:
    """Build a module on the meta device, without memory for its parameters."""
    with torch.device("meta"), _SkipInitialisation():
        return build()

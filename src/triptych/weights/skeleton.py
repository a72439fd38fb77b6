"""Modules on the meta device: parameters have shapes but no values until a checkpoint is loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)

MOST_TENSORS = 4000
"""Of one model; Stable Diffusion XL has 2,641. A second of building on a slow machine."""
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


@contextmanager
def _stop_at_most() -> Iterator[None]:
    """Stop building where a configuration, which may be anybody's, describes no real model."""
    count = 0

    def add(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_TENSORS:
            raise ValueError(
                f"the configuration describes a model of more than {MOST_TENSORS:,} tensors: it is "
                "damaged"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(
            "the configuration describes tensors that do not fit into any memory: it is damaged"
        ) from error
    finally:
        hook.remove()


def skeleton(build: Callable[[], Model]) -> Model:
    """Build a module on the meta device, without memory for its parameters.

    Raises:
        ValueError: it has too many tensors, or too large ones.
    """
    with torch.device("meta"), _SkipInitialisation(), _stop_at_most():
        return build()

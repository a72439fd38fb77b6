"""Pictures without borders: convolutions that see the left edge behind the right one."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def circular(module: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, every convolution of the module continues a picture by its opposite edge.

    What a network of convolutions draws then meets itself when it is laid side by side. Nothing
    else has a place for positions: attention sees a set, norms see sums.
    """
    found = [conv for conv in module.modules() if isinstance(conv, nn.Conv2d)] if wanted else []
    before = [conv.padding_mode for conv in found]
    try:
        for conv in found:
            conv.padding_mode = "circular"
        yield
    finally:
        for conv, mode in zip(found, before, strict=True):
            conv.padding_mode = mode

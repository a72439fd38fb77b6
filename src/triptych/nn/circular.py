"""Circular padding, for pictures that tile seamlessly."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def circular(module: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Within the context every convolution of the module pads circularly, if `enabled`.

    Convolutions are the only layers of these networks that depend on position: attention without
    position embeddings and norms do not.
    """
    convs = [conv for conv in module.modules() if isinstance(conv, nn.Conv2d)] if enabled else []
    before = [conv.padding_mode for conv in convs]
    try:
        for conv in convs:
            conv.padding_mode = "circular"
        yield
    finally:
        for conv, mode in zip(convs, before, strict=True):
            conv.padding_mode = mode

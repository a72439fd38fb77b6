"""Weights kept in bfloat16 while a network samples, instead of cast again at every call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from triptych.nn.convolution import Upsample, over_pairs


@contextmanager
def bfloat16_weights(network: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Within the context, if `enabled`, convolutions and linear layers have their weights of entry
    in bfloat16.

    Under autocast to bfloat16 the results are the same to the bit: it casts these weights, too, but
    at every call, because its cache is for weights that require gradients. Norms stay as they are.
    Upsampling keeps the filter that it would make of its weights at every call.
    """
    parts = [part for part in network.modules() if isinstance(part, Upsample)] if enabled else []
    upsampling = {id(part.conv) for part in parts}
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for part in parts:
            if part.conv.weight.dtype == torch.float32:
                part.pairs = over_pairs(part.conv.weight.detach()).bfloat16()
        for layer in network.modules() if enabled else ():
            if type(layer) not in (nn.Conv2d, nn.Linear) or id(layer) in upsampling:
                continue
            for name, weight in list(layer.named_parameters(recurse=False)):
                if weight.dtype == torch.float32:
                    kept.append((layer, name, weight))
                    half = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
                    setattr(layer, name, half)
        yield
    finally:
        for part in parts:
            part.pairs = None
        for layer, name, weight in kept:
            setattr(layer, name, weight)

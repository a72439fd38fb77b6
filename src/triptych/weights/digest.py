"""A name for weights, so that what was computed with them is told from what others give."""

import hashlib

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """A name for all weights of a module, to the last bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole = tensor.detach().to("cpu").contiguous().flatten()
        found.update(whole.view(torch.uint8).numpy().data)
    return found.hexdigest()

"""Random weights for a reference library and for us."""

import torch


def randomised(module, std=0.2):
    """Weights for which no layer is near an identity, and running statistics that are none."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name or ".bn" in name else 0.0, std)
    for name, buffer in module.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, std)
        if "running_var" in name:
            buffer.uniform_(0.5, 1.5)
    return module.eval()

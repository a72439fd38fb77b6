"""Optimizers, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from triptych.train.recipes.requests import Training


def adam(
    module: nn.Module,
    learning_rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) in one fused kernel; only matrices and filters decay."""
    moving = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def rate_factor(training: Training, step: int) -> float:
    """The share of its learning rate that step number `step`, counted from 0, uses."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    falling = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }[training.schedule]
    floor = training.rate_floor if training.schedule != "constant" else 0.0
    return floor + (1 - floor) * falling

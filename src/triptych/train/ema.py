"""Averaged weights: an exponential moving average with a warm-up."""

import copy

import torch
from torch import nn


class Ema:
    """The average of a module's weights over its last steps.

    After `halflife` further steps a weight counts half. Early on the half-life is at most `ramp`
    of the steps done, so that the random start is forgotten (as in arXiv:2206.00364, appendix F.1).
    Buffers, running means of normalisation among them, are copied, not averaged.
    """

    def __init__(self, module: nn.Module, halflife: float, ramp: float = 0.05):
        if halflife <= 0:
            raise ValueError(f"the half-life of averaged weights must be positive, not {halflife}")
        self.source = module
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.halflife, self.ramp = halflife, ramp

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Called after step number `step`, counted from 1."""
        halflife = min(self.halflife, self.ramp * step)
        decay = 0.5 ** (1 / halflife) if halflife > 0 else 0.0
        averages: list[torch.Tensor] = list(self.module.parameters())
        current: list[torch.Tensor] = list(self.source.parameters())
        torch._foreach_lerp_(averages, current, 1 - decay)
        for average, buffer in zip(self.module.buffers(), self.source.buffers(), strict=True):
            average.copy_(buffer)

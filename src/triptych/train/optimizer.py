"""Optimizers, and the learning rate as a function of the step."""

import copy
import math
from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

from triptych import runtime
from triptych.train.distributed import own_part, own_rows, whole
from triptych.train.settings import Training


class Ema:
    """Exponential moving average of a module's weights.

    The weights of a step count half after `halflife` further steps. Early on the half-life is at
    most `ramp` of the steps done, so that the random start is forgotten (arXiv:2206.00364, appendix
    F.1). Buffers, such as running means, are copied.
    """

    def __init__(
        self,
        module: nn.Module,
        halflife: float,
        ramp: float = 0.05,
        average: nn.Module | None = None,
    ):
        """`average` is the copy of the module that becomes the average; by default it is made."""
        if halflife <= 0:
            raise ValueError(f"the half-life of averaged weights must be positive, not {halflife}")
        self.source = module
        average = copy.deepcopy(module) if average is None else average
        self.module = average.requires_grad_(False).eval()
        self.halflife, self.ramp = halflife, ramp

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step number `step`, counted from 1."""
        halflife = min(self.halflife, self.ramp * step)
        decay = 0.5 ** (1 / halflife) if halflife > 0 else 0.0
        averages = [own_part(parameter) for parameter in self.module.parameters()]
        current = [own_part(parameter) for parameter in self.source.parameters()]
        torch._foreach_lerp_(averages, current, 1 - decay)
        for average, buffer in zip(self.module.buffers(), self.source.buffers(), strict=True):
            average.copy_(buffer)


def adam(
    module: nn.Module,
    learning_rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) in one fused kernel; biases and norms do not decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def rate_factor(training: Training, step: int) -> float:
    """The factor of the learning rate at step number `step`, counted from 0."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    if training.schedule == "constant":
        return 1.0
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    falling = 1 - done if training.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return training.rate_floor + (1 - training.rate_floor) * falling


class OptimizerSettings(Protocol):
    """A training request that lets one choose between AdamW and Muon."""

    @property
    def optimizer(self) -> Literal["adamw", "muon"]: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def matrix_rate(self) -> float: ...


def build_optimizer(
    request: OptimizerSettings,
    module: nn.Module,
    inner: Iterable[nn.Module],
    *,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimizer that a request names, for the trainable parameters of a module.

    `inner` are the parts between its first and last layers, whose matrices Muon orthogonalizes.
    """
    if request.optimizer == "adamw":
        return adam(module, request.learning_rate, betas=betas, weight_decay=weight_decay)
    matrices = [p for part in inner for p in part.parameters() if p.requires_grad and p.ndim > 1]
    chosen = set(matrices)
    others = [p for p in module.parameters() if p.requires_grad and p not in chosen]
    return Muon(matrices, others, request.matrix_rate, request.learning_rate, betas=betas)


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan et al., 2024) for matrices, AdamW for everything else.

    A matrix moves along its momentum with all singular values set to about one, so that directions
    that are rare in the gradients are learned as fast as the others. The filters of a convolution
    are a matrix of output channels by everything else.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        matrix_rate: float,
        learning_rate: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ):
        matrix = {"params": list(matrices), "lr": matrix_rate, "matrices": True}
        rest = {"params": list(others), "lr": learning_rate, "matrices": False}
        groups = [group for group in (matrix, rest) if group["params"]]
        super().__init__(groups, {"momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._step_muon(parameters, group["lr"], group["momentum"])
            elif parameters:
                self._step_adamw(parameters, group["lr"], *group["betas"])

    def _step_muon(self, parameters: list[nn.Parameter], rate: float, momentum: float) -> None:
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            mean = state["momentum"].lerp_(p.grad, 1 - momentum)
            ahead = p.grad.lerp(mean, momentum).flatten(1)  # Nesterov momentum
            tall = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
            dtype = getattr(torch, runtime.precision("auto", p.device))
            direction = orthogonalize(whole(ahead), dtype).view(p.shape)
            own_part(p).add_(own_rows(direction, p), alpha=-rate * tall)

    def _step_adamw(
        self, parameters: list[nn.Parameter], rate: float, beta1: float, beta2: float
    ) -> None:
        for p in parameters:
            if not self.state[p]:
                zeros = torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device)
                self.state[p] |= dict(zip(("exp_avg", "exp_avg_sq", "step"), zeros, strict=True))
        states = [self.state[p] for p in parameters]
        adamw(
            [p.data for p in parameters],
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def orthogonalize(matrix: Float[Tensor, "R C"], dtype: torch.dtype) -> Float[Tensor, "R C"]:
    """The matrix with its singular values moved to between about 0.7 and 1.2, computed in `dtype`.

    Five steps of a quintic Newton-Schulz iteration. Singular values above about 0.002 of the
    Frobenius norm reach the range; smaller ones grow up to 485 times, and zeros stay.
    """
    tall = len(matrix) > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / (x.norm() + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        square = x @ x.T  # (R, R), R the smaller side
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)

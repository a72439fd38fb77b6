"""The smallest systems that use every part of the loop: a linear regression, and two players."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from triptych.nn.loss import Loss
from triptych.runtime import key
from triptych.train import checkpoint
from triptych.train.recipe import Batch, Recipe, Update

CARD = {"model": "toy", "config": {}}


def batch(k: int, size: int = 8) -> Batch:
    draw = torch.Generator().manual_seed(key(1, k))
    x = torch.randn(size, 4, generator=draw)
    return {"image": x, "y": x.sum(1, keepdim=True)}


def endless(start: int) -> Iterator[Batch]:
    k = start
    while True:
        yield batch(k)
        k += 1


def regression(rate: float = 0.05, poison: frozenset[int] = frozenset()) -> Recipe:
    """Noise in the loss, dropout-like, so that a resume that forgot the seed would show."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)
    )

    def objective(data: Batch, step: int) -> Loss:
        x = data["image"] + 0.1 * torch.randn_like(data["image"])
        error = (model(x) - data["y"]).square().sum()
        if step in poison:
            error = error * torch.nan
        return Loss(error, len(x), {"mse": error.detach() / len(x)})

    return Recipe(
        model=model,
        exported=model,
        updates=[
            Update("", model, torch.optim.AdamW(model.parameters(), rate, fused=True), objective)
        ],
        batches=endless,
        export=partial(checkpoint.export, card=CARD),
        sample=lambda module: np.zeros((8, 8, 3), np.uint8),
    )


def two_players() -> Recipe:
    """A critic that moves twice a step and a generator that sees the same data."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"critic": nn.Linear(4, 1), "generator": nn.Linear(4, 4)})

    def criticise(data: Batch, step: int) -> Loss:
        fake = model["generator"](torch.randn_like(data["image"])).detach()
        gap = (model["critic"](fake) - model["critic"](data["image"])).sum()
        return Loss(gap, len(fake), {"c_wass_loss": gap.detach() / len(fake)})

    def generate(data: Batch, step: int) -> Loss:
        fake = model["generator"](torch.randn_like(data["image"]))
        return Loss(-model["critic"](fake).sum(), len(fake), {})

    def adam(name: str) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model[name].parameters(), 0.01, fused=True)

    return Recipe(
        model=model,
        exported=model["generator"],
        updates=[
            Update("c", model["critic"], adam("critic"), criticise, repeat=2, max_norm=None),
            Update("g", model["generator"], adam("generator"), generate, data="reuse"),
        ],
        batches=endless,
        export=partial(checkpoint.export, card=CARD),
    )

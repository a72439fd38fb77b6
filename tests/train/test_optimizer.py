"""Muon against torch's own, which takes matrices alone, and against AdamW for the rest."""

import dataclasses
import re

import pytest
import torch
from torch import Tensor, nn

from tests.learning.test_recipes import SMALL
from triptych.requests import TrainAutoencoder, TrainTextToImage
from triptych.train.optimizer import Muon, adam, build_optimizer, orthogonalize
from triptych.training import build


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(16, 144), (96, 32), (8, 8)])
def test_a_matrix_becomes_nearly_orthogonal(
    shape: tuple[int, int], dtype: torch.dtype, off: float
) -> None:
    """Against the singular value decomposition: the same directions, lengths near one."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -1.5, min(shape))
    found = left.T @ orthogonalize(left @ torch.diag(values) @ right, dtype) @ right.T
    lengths = found.diagonal()
    assert ((lengths > 0.65) & (lengths < 1.25)).all()
    torch.testing.assert_close(found, torch.diag(lengths), atol=off, rtol=0)


def test_matrices_and_filters_decay_and_biases_and_norms_do_not() -> None:
    """Without a gradient AdamW only decays: by rate times decay (arXiv:1711.05101, algorithm 2)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adam(model, 0.01, weight_decay=0.3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decays = name in ("0.weight", "2.weight")
        expected = before[name] * (1 - 0.01 * 0.3) if decays else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)
        assert before[name].abs().sum() > 0 or "bias" in name
    assert before["0.bias"].abs().sum() > 0


def test_nothing_is_turned_where_there_is_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(4, 9), torch.float32), torch.zeros(4, 9))


def gradients(step: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    torch.manual_seed(step)
    return [torch.randn(shape) for shape in shapes]


def test_steps_are_those_of_torch() -> None:
    """Its matrices are turned in bfloat16, so only to two digits; AdamW is the same numbers."""
    torch.manual_seed(0)
    shapes = [(24, 60), (60, 24), (24,), (24, 24)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    optimizer = Muon(ours[:2], ours[2:], 0.02, 0.001)
    peers = [
        torch.optim.Muon(theirs[:2], lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(theirs[2:], lr=0.001, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
    for step in range(5):
        for both in (ours, theirs):
            for p, gradient in zip(both, gradients(step, shapes), strict=True):
                p.grad = gradient
        for each in (optimizer, *peers):
            each.step()
    for mine, peer, before in zip(ours[:2], theirs[:2], start[:2], strict=True):
        assert (mine - peer).norm() < 0.03 * (peer - before).norm()
    for mine, peer in zip(ours[2:], theirs[2:], strict=True):
        assert torch.equal(mine, peer)


def test_a_filter_is_the_matrix_of_its_outputs() -> None:
    """Unlike torch's, which refuses filters: the same step as of the flattened matrix."""
    torch.manual_seed(0)
    filters, matrix = nn.Parameter(torch.zeros(8, 4, 3, 3)), nn.Parameter(torch.zeros(8, 36))
    gradient = torch.randn(8, 36)
    filters.grad, matrix.grad = gradient.view(8, 4, 3, 3).clone(), gradient.clone()
    Muon([filters], [], 0.1, 0.1).step()
    Muon([matrix], [], 0.1, 0.1).step()
    assert torch.equal(filters.flatten(1), matrix)
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([filters])


@pytest.mark.parametrize("request_", [TrainAutoencoder(), TrainTextToImage()])
def test_a_request_turns_what_is_between_the_first_layer_and_the_last(request_) -> None:
    """And every parameter that moves does so once."""
    inner = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4))
    whole = nn.ModuleDict({"first": nn.Conv2d(1, 2, 3), "inner": inner})
    inner[2].weight.requires_grad_(False)
    plain = build_optimizer(request_, whole, [inner], betas=(0.9, 0.99))
    assert isinstance(plain, torch.optim.AdamW)
    request_ = dataclasses.replace(request_, optimizer="muon")
    optimizer = build_optimizer(request_, whole, [inner], betas=(0.9, 0.99))
    assert isinstance(optimizer, Muon)
    matrices, others = optimizer.param_groups
    assert (matrices["lr"], others["lr"]) == (request_.matrix_rate, request_.learning_rate)
    assert [id(p) for p in matrices["params"]] == [id(inner[0].weight)]
    moving = {id(p) for p in whole.parameters() if p.requires_grad}
    assert {id(p) for p in others["params"]} == moving - {id(inner[0].weight)}
    assert len(others["params"]) == len(moving) - 1


@pytest.mark.parametrize(
    ("request_", "adapted"),
    [
        (
            TrainAutoencoder(widths=(8, 16), groups=4),
            r"(encoder|decoder)\.(conv_in|conv_out|quant_conv|post_quant_conv)\.",
        ),
        (TrainTextToImage(**SMALL), r"text\.|unet\.(conv_in|conv_out)\."),
    ],
)
def test_recipes_turn_all_but_the_ends(request_, adapted: str) -> None:
    training = dataclasses.replace(request_.training, data="scenes-one", size=32, device="cpu")
    update = build(dataclasses.replace(request_, training=training, optimizer="muon")).updates[0]
    assert isinstance(update.optimizer, Muon)
    turned = {id(p) for p in update.optimizer.param_groups[0]["params"]}
    for name, p in update.module.named_parameters():
        wanted = p.requires_grad and p.ndim > 1 and not re.search(adapted, name)
        assert (id(p) in turned) == wanted, name


def test_muon_refuses_what_it_would_ignore() -> None:
    for more in ({"weight_decay": 0.1}, {"lora": 4, "init": "runs/other"}):
        with pytest.raises(ValueError, match="leave out lora and weight_decay"):
            TrainTextToImage(optimizer="muon", **more)

"""Two and three processes with a part of the batch each, against one process with all of it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from triptych.nn.contrastive.losses import sigmoid_loss, softmax_loss
from triptych.nn.contrastive.ranks import Ranks

PAIRS, WIDTH = 18, 5
FOREVER = 3600.0  # seconds after which a process counts as hanging, however busy the machine is
CASES = [
    (loss, dtype, groups, wanted)
    for loss in ("softmax", "sigmoid")
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for groups in (False, True)
    for wanted in ((True, True), (False, True), (True, False))
]


def batch(loss, dtype, groups, wanted):
    """Towers of one matrix each, their inputs, and the loss's scalars."""
    generator = torch.Generator().manual_seed(3)
    images, texts = torch.randn(2, PAIRS, 4, generator=generator).double()
    towers = torch.randn(2, 4, WIDTH, generator=generator).double().unbind()
    scalars = [torch.tensor(0.7), torch.tensor(-1.5)][: 1 if loss == "softmax" else 2]
    leaves = [x.to(dtype).detach() for x in (*towers, *scalars)]
    for leaf, wants in zip(leaves, (*wanted, True, True), strict=False):
        leaf.requires_grad_(wants)
    numbers = torch.arange(PAIRS).remainder(4) if groups else None  # matches cross the ranks
    return images.to(dtype), texts.to(dtype), leaves, numbers


def part(case, loss, own, **options):
    """Value and parameters' gradients of the pairs in `own`."""
    images, texts, leaves, numbers = batch(*case)
    groups = None if numbers is None else numbers[own]
    value = loss(
        images[own] @ leaves[0], texts[own] @ leaves[1], *leaves[2:], groups=groups, chunk=4,
        **options,
    )  # fmt: skip
    used = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(value / 3, used)  # as in an accumulation over three batches
    return [value.detach().double(), *(gradient.double() for gradient in gradients)]


def rank_main(rank, world, store, out):
    """What one process does: its share of every case; the results of rank 0 are the means."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    pairs = PAIRS // world
    own, results = slice(rank * pairs, (rank + 1) * pairs), []
    ranks = Ranks(rank, world)
    losses = {
        "softmax": partial(softmax_loss, ranks=ranks),
        "sigmoid": partial(sigmoid_loss, ranks=ranks),
    }
    for case in CASES:
        found = part(case, losses[case[0]], own)
        for number in found:
            dist.all_reduce(number)
        with torch.no_grad():
            images, texts, leaves, _ = batch(*case)
            value = losses[case[0]](images[own] @ leaves[0], texts[own] @ leaves[1], *leaves[2:])
            dist.all_reduce(value)
        results.append({"trained": [x / world for x in found], "evaluated": value / world})
    unequal = ""
    try:
        losses["softmax"](torch.ones(rank + 1, 2), torch.ones(rank + 1, 2), torch.tensor(0.0))
    except ValueError as error:
        unequal = str(error)
    if rank == 0:
        torch.save({"cases": results, "unequal": unequal}, out)
    dist.destroy_process_group()


@pytest.fixture(
    scope="module",
    params=[2, *(pytest.param(world, marks=pytest.mark.slow) for world in (1, 3))],
)
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    out, world = folder / "results.pt", request.param
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(folder / "store"), str(out)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=FOREVER)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return world, torch.load(out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_mean_over_ranks_is_one_process(results, case):
    """Values and parameters' gradients, averaged as data-parallel training does."""
    _, found = results
    loss = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}[case[0]]
    expected = part(case, loss, slice(None))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[case[1]]
    for mine, theirs in zip(found["cases"][CASES.index(case)]["trained"], expected, strict=True):
        assert (mine - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())


def test_evaluation(results):
    """Without gradients, without groups."""
    for case, found in zip(CASES, results[1]["cases"], strict=True):
        images, texts, leaves, _ = batch(*case)
        loss = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}[case[0]]
        value = loss(images @ leaves[0], texts @ leaves[1], *leaves[2:]).detach()
        torch.testing.assert_close(found["evaluated"], value, rtol=1e-6, atol=0)


def test_unequal_batches_are_refused_by_every_rank(results):
    """Where a collective would hang, or the mean of means be another number."""
    world, found = results
    expected = "all ranks need the same number and width of pairs, not [[1, 2], [2, 2]"
    assert found["unequal"].startswith(expected) if world > 1 else found["unequal"] == ""


def test_in_a_ring_each_sends_on_and_receives_from_the_one_before(monkeypatch):
    operations = []
    monkeypatch.setattr(dist, "P2POp", lambda does, tensor, peer: (does, peer))
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda given: operations.extend(given) or [])
    for rank in (0, 3):
        Ranks(rank, 4).pass_on([torch.ones(1)])
    expected = [(dist.isend, 1), (dist.irecv, 3), (dist.isend, 0), (dist.irecv, 2)]
    assert operations == expected


if __name__ == "__main__":
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    rank_main(rank, world, Path(sys.argv[3]), Path(sys.argv[4]))

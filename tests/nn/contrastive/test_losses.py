"""Both losses against the full matrix, closed forms and peers; memory; duplicates; caching."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triptych.nn.contrastive import tiles as contrastive_tiles
from triptych.nn.contrastive.losses import (
    cached_embeddings,
    duplicate_groups,
    sigmoid_loss,
    softmax_loss,
)


def full_softmax(image, text, logit_scale, groups=None):
    """Figure 3 of arXiv:2103.00020, written out, with targets where captions repeat."""
    logits = logit_scale.exp() * image @ text.T
    groups = torch.arange(len(image)) if groups is None else groups
    matches = (groups[:, None] == groups).to(logits.dtype)
    target = matches / matches.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def full_sigmoid(image, text, logit_scale, logit_bias, groups=None):
    """Algorithm 1 of arXiv:2303.15343, written out."""
    logits = logit_scale.exp() * image @ text.T + logit_bias
    groups = torch.arange(len(image)) if groups is None else groups
    labels = 2 * (groups[:, None] == groups).to(logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


LOSSES = {"softmax": (softmax_loss, full_softmax), "sigmoid": (sigmoid_loss, full_sigmoid)}
GROUPS = {"pairs": lambda n: None, "repeats": lambda n: torch.arange(n).remainder(7) * 10 - 30}


def arguments(loss, count=37, width=12, dtype=torch.float64, scale=20.0, bias=-3.0):
    torch.manual_seed(count)
    image = F.normalize(torch.randn(count, width, dtype=torch.float64), dim=-1)
    text = F.normalize(image + torch.randn(count, width, dtype=torch.float64), dim=-1)
    scalars = [torch.tensor(math.log(scale), dtype=torch.float64)]
    scalars += [torch.tensor(bias, dtype=torch.float64)] if loss == "sigmoid" else []
    return [x.to(dtype).requires_grad_() for x in (image, text, *scalars)]


def value_and_gradients(loss, given, **options):
    value = loss(*given, **options)
    return [value.detach(), *torch.autograd.grad(1.7 * value, given)]


def assert_equal(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("count", [1, 16, 37])
@pytest.mark.parametrize("kept", [0, 100, 2**25])
def test_value_and_gradients_are_those_of_the_full_matrix(loss, groups, count, kept, monkeypatch):
    """Tiles that fill the batch, that do not, and one that is larger; some, all or none kept."""
    monkeypatch.setattr(contrastive_tiles, "KEPT", kept)
    ours, full = LOSSES[loss]
    given, numbers = arguments(loss, count), GROUPS[groups](count)
    expected = value_and_gradients(full, given, groups=numbers)
    for chunk in (8, 64):
        found = value_and_gradients(ours, given, groups=numbers, chunk=chunk)
        assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("groups", GROUPS)
def test_float32_is_as_good_as_the_full_matrix(loss, groups):
    """Against float64 on the same numbers, at a trained scale."""
    ours, full = LOSSES[loss]
    given, numbers = arguments(loss, 300, 64, torch.float32, scale=50), GROUPS[groups](300)
    exact = value_and_gradients(
        full, [x.double().detach().requires_grad_() for x in given], groups=numbers
    )
    found = value_and_gradients(ours, given, groups=numbers, chunk=128)
    assert_equal(found, exact, 1e-6)
    assert all(x.dtype == torch.float32 for x in found)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_at_the_ends_only(loss, dtype):
    """The value exact for the rounded embeddings; gradients to half a unit in the last place."""
    ours, full = LOSSES[loss]
    given = [x.detach().to(dtype).double().requires_grad_() for x in arguments(loss, 50)]
    exact = value_and_gradients(full, given)
    halves = [x.detach().to(dtype).requires_grad_() for x in given]
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(ours, halves, chunk=16)
    assert found[0].dtype == torch.float32
    assert_equal([found[0]], [exact[0]], 1e-6)
    for mine, theirs in zip(found[1:], exact[1:], strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(
            mine.double(), theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6
        )


def test_a_scaled_loss_in_float16():
    """A factor that float16 cannot hold, for gradients that it can hold only with the factor."""
    image, text = torch.randn(2, 64, 8).half().requires_grad_().unbind()
    scale = torch.tensor(-14.0)
    (exact,) = torch.autograd.grad(softmax_loss(image.double(), text.double(), scale), image)
    assert (exact == 0).float().mean() > 0.1
    exact, text = image.detach().double().requires_grad_(), text.detach()
    expected = torch.autograd.grad(softmax_loss(exact, text.double(), scale) * 2**16, exact)[0]
    (found,) = torch.autograd.grad(softmax_loss(image, text, scale) * 2**16, image)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 100, 1e4])
def test_small_and_huge_logits(loss, scale):
    """Far beyond the range of exp in float32, on both sides."""
    ours, full = LOSSES[loss]
    given = arguments(loss, 30, dtype=torch.float32, scale=scale)
    exact = value_and_gradients(full, [x.detach().double().requires_grad_() for x in given])
    found = value_and_gradients(ours, given, chunk=7)
    assert all(x.isfinite().all() for x in found)
    assert_equal(found, exact, 1e-5 + 1e-7 * scale)  # a logit has 24 bits


def test_confident_matches_keep_their_small_gradients():
    """1 - sigmoid(20) is 2e-9, which a subtraction in float32 would round to 0."""
    x = torch.eye(2).requires_grad_()
    scale, bias = torch.tensor(math.log(40.0)), torch.tensor(-20.0)
    (gradient,) = torch.autograd.grad(sigmoid_loss(x, torch.eye(2), scale, bias), x)
    expected = torch.sigmoid(torch.tensor(-20.0)) * 40 / 2
    torch.testing.assert_close(-gradient.diagonal(), expected.expand(2))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [1, 2])
def test_derivative_by_differences(loss, chunk):
    given = arguments(loss, 5, 3)
    assert torch.autograd.gradcheck(lambda *x: LOSSES[loss][0](*x, chunk=chunk), given)


def test_chance():
    """Random vectors of small scale: ln B for the softmax, B ln 2 for the sigmoid at zero."""
    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(2, 1000, 256), dim=-1)
    zero = torch.tensor(0.0)
    # E[ln sum exp z] - E[z] of z ~ N(0, 1 / 256) is ln B + 1 / 512
    assert softmax_loss(image, text, zero).item() == pytest.approx(math.log(1000), abs=0.01)
    small = torch.tensor(-20.0)
    assert sigmoid_loss(image, text, small, zero).item() == pytest.approx(1000 * math.log(2))


def test_a_single_pair_has_nothing_to_be_told_from():
    image, text = torch.randn(2, 1, 8).requires_grad_().unbind()
    loss = softmax_loss(image, text, torch.tensor(2.0))
    assert loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (image, text)))


def test_a_batch_of_copies():
    """All captions equal: with groups nothing can be wrong, without it is chance."""
    image = torch.ones(6, 4).requires_grad_()
    groups, duplicates = duplicate_groups(["a dog"] * 6)
    loss = softmax_loss(image, torch.ones(6, 4), torch.tensor(1.0), groups=groups)
    assert loss.item() == pytest.approx(math.log(6))
    assert duplicates == 5
    matched = sigmoid_loss(
        image, torch.ones(6, 4), torch.tensor(3.0), torch.tensor(0.0), groups=groups
    )
    assert matched.item() < 1e-6


@pytest.mark.parametrize("wanted", [{0}, {1}, {2}, {0, 2}, {1, 2}, {3}, set()])
@pytest.mark.parametrize("loss", LOSSES)
def test_only_what_is_asked_for(loss, wanted):
    """Locked-image tuning, a frozen scale, evaluation: the same numbers, nothing else."""
    ours, full = LOSSES[loss]
    given = arguments(loss)
    expected = value_and_gradients(full, given)
    given = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(given)]
    value = ours(*given, chunk=8)
    torch.testing.assert_close(value.detach(), expected[0])
    assert value.requires_grad == bool(wanted & set(range(len(given))))
    if value.requires_grad:
        (1.7 * value).backward()
    for x, gradient in zip(given, expected[1:], strict=True):
        if x.requires_grad:
            torch.testing.assert_close(x.grad, gradient)
        else:
            assert x.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_twice_and_the_inputs_are_left_alone(loss):
    given = arguments(loss)
    before = [x.detach().clone() for x in given]
    value = LOSSES[loss][0](*given)
    first = torch.autograd.grad(value, given, retain_graph=True)
    second = torch.autograd.grad(2 * value, given)
    for a, b, x, y in zip(first, second, given, before, strict=True):
        torch.testing.assert_close(2 * a, b)
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(3, 2)}, r"pairs, \(B, D\) .* not \(3, 2\) and \(4, 2\)"),
        ({"image": torch.zeros(0, 2), "text": torch.zeros(0, 2)}, "B at least 1"),
        ({"image": torch.zeros(4), "text": torch.zeros(4)}, r"not \(4,\) and \(4,\)"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, r"shape \(4,\), not \(3,\)"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
    ],
)
def test_what_cannot_be(changes, message):
    given = {"image": torch.zeros(4, 2), "text": torch.zeros(4, 2), "groups": None, "chunk": 8}
    with pytest.raises(ValueError, match=message):
        contrastive_tiles.check(**given | changes)


def test_both_losses_check():
    pairs, zero = torch.zeros(4, 2), torch.tensor(0.0)
    with pytest.raises(ValueError, match="chunk must be at least 1, not -1"):
        softmax_loss(pairs, pairs, zero, chunk=-1)
    with pytest.raises(ValueError, match="chunk must be at least 1, not -1"):
        sigmoid_loss(pairs, pairs, zero, zero, chunk=-1)


def test_duplicates_are_found_in_texts_and_in_tokens():
    texts = ["a dog", "a cat", "a dog", "A dog", "a dog "]
    groups, duplicates = duplicate_groups(texts)
    assert duplicates == 1
    assert (groups[:, None] == groups).sum() == 5 + 2
    assert groups[0] == groups[2]
    again, _ = duplicate_groups(texts[:2])
    assert torch.equal(again, groups[:2])  # the numbers do not depend on the batch
    tokens = torch.tensor([[5, 1, 0], [5, 1, 1], [5, 1, 0], [51, 0, 0]])
    groups, duplicates = duplicate_groups(tokens)
    assert duplicates == 1
    assert groups[0] == groups[2]
    assert len(groups.unique()) == 3


MEMORY = """
import json, torch
from torch.nn import functional as F
from triptych.nn.contrastive.losses import cached_embeddings, sigmoid_loss, softmax_loss
torch.set_num_threads(1)

def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

def full(image, text):
    logits = 10 * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

def train(loss):
    loss().backward()
    return peak() - base

image, text = (F.normalize(torch.randn(4500, 16)).requires_grad_() for _ in range(2))
zero = torch.tensor(2.3)
tower = torch.nn.Sequential(torch.nn.Linear(16, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 8))
pixels = torch.randn(4096, 16)
softmax_loss(image[:100], text[:100], zero).backward()
cached_embeddings(tower, pixels[:100], 50).sum().backward()  # imports much
base = peak()
print(json.dumps({
    "sigmoid": train(lambda: sigmoid_loss(image, text, zero, zero)),
    "cached": train(lambda: cached_embeddings(tower, pixels, 256).square().sum()),
    "softmax": train(lambda: softmax_loss(image, text, zero)),
    "whole": train(lambda: tower(pixels).square().sum()),
    "full": train(lambda: full(image, text)),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_memory():
    """The peak so far in MB, from small to large; a matrix has 77, an activation 64."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=environment
    )
    more = json.loads(done.stdout)
    assert more["sigmoid"] < 50  # two tiles of 16
    assert more["cached"] < 50
    assert more["softmax"] < 130  # with all logits kept once
    assert more["whole"] > 150
    assert more["full"] > 250


def tower():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 8)).double()


@pytest.mark.parametrize(("rows", "chunk"), [(10, 1), (10, 3), (10, 5), (10, 100), (1, 1)])
def test_cached_embeddings_are_those_of_the_tower(rows, chunk):
    model, inputs = tower().eval(), torch.randn(rows, 6, dtype=torch.float64)
    text = torch.randn(rows, 8, dtype=torch.float64)
    results = []
    for embed in (model, lambda x: cached_embeddings(model, x, chunk)):
        model.zero_grad()
        value = softmax_loss(embed(inputs), text, torch.tensor(1.0).double())
        value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    assert_equal(*results, 1e-12)


def test_cached_embeddings_repeat_the_dropout():
    """The gradient belongs to the masks that gave the value, and the generator moves on once."""
    model, inputs = tower(), torch.randn(10, 6, dtype=torch.float64)
    results = []
    for embed in (
        lambda x: torch.cat([model(part) for part in x.split(4)]),
        lambda x: cached_embeddings(model, x, 4),
    ):
        model.zero_grad()
        torch.manual_seed(5)
        embeddings = embed(inputs)
        embeddings.pow(3).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        results.append([embeddings.detach(), *gradients, torch.rand(3)])
    assert_equal(*results, 1e-12)
    assert (results[0][0] - model.eval()(inputs)).abs().max() > 1e-3  # dropout did something


def test_cached_embeddings_hold_one_chunk():
    """How many rows the tower sees at once, and that backward computes each again."""
    seen, model = [], tower()
    cached = cached_embeddings(
        lambda x, y: seen.append(len(x)) or model(x * y),
        (torch.randn(10, 6).double(), torch.randn(10, 6).double()),
        4,
    )
    assert seen == [4, 4, 2]
    cached.sum().backward()
    assert sorted(seen) == [2, 2, 4, 4, 4, 4]
    with torch.no_grad():
        cached_embeddings(lambda x: seen.append(len(x)) or x, torch.zeros(3, 1), 4)
    assert seen[6:] == [3]


@pytest.mark.parametrize(
    ("inputs", "chunk"),
    [(torch.zeros(3), 0), ((), 2), ((torch.zeros(3), torch.zeros(4)), 2), (torch.zeros(0, 2), 2)],
)
def test_cached_embeddings_of_what_cannot_be(inputs, chunk):
    with pytest.raises(ValueError, match="a chunk of at least 1 and tensors of one length"):
        cached_embeddings(nn.Identity(), inputs, chunk)


def test_a_step_against_the_gradient_helps():
    given = arguments("sigmoid", 64)
    values = []
    for _ in range(6):
        value, *gradients = value_and_gradients(sigmoid_loss, given)
        values.append(value.item())
        given = [
            (x - 0.02 * g).detach().requires_grad_() for x, g in zip(given, gradients, strict=True)
        ]
    assert all(later < earlier for earlier, later in pairwise(values))

"""What one process does with the others' answers, which are given here instead of sent."""

import pytest
import torch
from torch import nn

from triptych.train import distributed
from triptych.train.distributed import OtherProcessFailed, World


@pytest.fixture
def others(monkeypatch):
    """A function that sets what `gather` gives beside a process's own value."""

    def answer(world: World, *theirs):
        def gather(self, value):
            values = list(theirs)
            values.insert(self.rank, value)
            return values

        monkeypatch.setattr(World, "gather", gather)
        return world

    return answer


def fail():
    raise KeyError("mine")


def test_an_action_that_fails_nowhere_gives_its_result(others):
    assert others(World(1, 3), False, False).run_on_all(lambda: 7) == 7
    assert World().run_on_all(lambda: 7) == 7
    with pytest.raises(KeyError):
        World().run_on_all(fail)


@pytest.mark.parametrize(
    ("rank", "theirs", "error"),
    [
        (0, (False, False), KeyError),
        (0, (True, True), KeyError),  # the first to fail tells why
        (1, (False, True), KeyError),
        (1, (True, False), OtherProcessFailed),
        (2, (False, True), OtherProcessFailed),
    ],
)
def test_of_all_that_fail_the_first_says_why(others, rank, theirs, error):
    with pytest.raises(error):
        others(World(rank, 3), *theirs).run_on_all(fail)


@pytest.mark.parametrize(("rank", "says"), [(0, "another process"), (1, "^$")])
def test_where_another_fails_all_stop_and_the_first_process_says_so(others, rank, says):
    with pytest.raises(OtherProcessFailed, match=says):
        others(World(rank, 2), True).run_on_all(lambda: 7)


def test_what_the_first_process_alone_does_is_known_to_all(others, monkeypatch):
    asked = []
    values = {0: [[False, False], [7, None]], 1: [[False, False], [7, None]]}
    for rank in (0, 1):
        answers = iter(values[rank])
        monkeypatch.setattr(World, "gather", lambda self, value, a=answers: next(a))
        assert World(rank, 2).run_on_first(lambda rank=rank: asked.append(rank) or 7) == 7
    assert asked == [0]


def test_tensors_are_summed_in_buckets_of_one_dtype_and_bounded_size(monkeypatch):
    """Each bucket is one exchange: here with a process that holds the same."""
    sent = []

    def all_reduce(flat):
        sent.append((flat.dtype, len(flat)))
        flat.mul_(2)

    monkeypatch.setattr(distributed, "BUCKET", 10)
    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    shapes = [(2, 3), (4,), (1,), (11,), (3,)]
    tensors = [torch.randn(shape) for shape in shapes] + [torch.randn(2).double()]
    before = [tensor.clone() for tensor in tensors]
    World(0, 2).add_up(tensors)
    for tensor, given in zip(tensors, before, strict=True):
        assert torch.equal(tensor, 2 * given)
    assert sent == [
        (torch.float32, 10), (torch.float32, 1), (torch.float32, 11), (torch.float32, 3),
        (torch.float64, 2),
    ]  # fmt: skip
    World().add_up(tensors)
    assert len(sent) == 5  # alone: nothing to exchange


def test_a_parameter_that_only_another_process_used_has_a_gradient_too(monkeypatch):
    mine, theirs, nobody = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    mine.grad = torch.ones(2)

    def all_reduce(tensor, *operation):
        if tensor.dtype == torch.uint8:
            assert operation == (distributed.dist.ReduceOp.MAX,)
            tensor.copy_(tensor.maximum(torch.tensor([0, 1, 0], dtype=torch.uint8)))
        else:
            tensor += torch.tensor([10.0, 10, 20, 20, 5])

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    numbers = torch.tensor([3.0])
    World(0, 2).add_up_gradients([mine, theirs, nobody], numbers)
    assert mine.grad.tolist() == [11, 11] and theirs.grad.tolist() == [20, 20]
    assert nobody.grad is None and numbers.tolist() == [8]


@pytest.mark.parametrize("place", range(6))
def test_one_bit_of_one_weight_is_a_difference(monkeypatch, place: int) -> None:
    """Of as many weights, of the same shapes: what each process sends is compared."""
    sent = []

    def gather(self, value):
        sent.append(value)
        return list(sent)

    monkeypatch.setattr(World, "gather", gather)
    weights = [torch.arange(4.0), torch.tensor([[5.0, 6.0]])]
    World(0, 2).require_same(weights, 4)
    World(1, 2).require_same([w.clone() for w in weights], 4)
    index, within = divmod(place, 4)
    flat = weights[index].view(-1)
    flat[within] = torch.nextafter(flat[within], torch.tensor(100.0))
    with pytest.raises(RuntimeError, match="different weights after step 4"):
        World(1, 2).require_same(weights, 4)


def test_steps_and_weights_are_compared(others):
    weights = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    own = [4, *(distributed._fingerprint(w) for w in weights)]
    others(World(0, 2), own).require_same(weights, 4)
    with pytest.raises(RuntimeError, match="at steps 4, 6: the run folder"):
        others(World(0, 2), [6, *own[1:]]).require_same(weights, 4)
    with pytest.raises(RuntimeError, match="different weights after step 4"):
        others(World(0, 2), [4, own[1] + 1, own[2]]).require_same(weights, 4)
    World().require_same(weights, 4)


@pytest.mark.parametrize(
    ("device", "gpus", "environment", "result"),
    [
        ("cpu", 0, {}, "gloo"),
        ("cuda", 2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cpu:gloo,cuda:nccl"),
        ("cuda", 2, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, "more processes"),
        ("cuda", 2, {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "more processes"),
        ("cuda:1", 2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "give --device cuda, not"),
    ],
)
def test_every_process_takes_a_gpu_of_its_own(monkeypatch, device, gpus, environment, result):
    chosen = []
    monkeypatch.setattr(distributed.runtime, "device", lambda choice: torch.device(choice))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "gloo" in result:
        assert distributed._backend(device) == result
        assert chosen == ([1] if device == "cuda" else [])
    else:
        with pytest.raises(ValueError, match=result):
            distributed._backend(device)
        assert chosen == []

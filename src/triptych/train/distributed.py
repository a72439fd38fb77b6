"""Training spread over processes: who a process is, and what it asks of the others.

Every process holds the whole model and reads its own share of every batch; after backward the
gradients are added up explicitly and divided by the number of all items, since an objective calls
parts of a module, which a wrapper's forward would not see. Whatever follows from the sums, norms,
clipping, moments, averages, is then the same everywhere and needs no exchange. The first process
writes; the others wait for it in the next exchange.

A process that fails ends its connections, and with them the exchange that the others wait in.

Dimensions: B items, C channels.
"""

import importlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from triptych import runtime
from triptych.train.settings import Training

BUCKET = 1 << 24  # numbers that travel together: 64 MiB in float32
PATIENCE = timedelta(hours=2)
"""The others wait while the first process draws, judges and saves. A process that ends takes its
connections with it; the clock is for machines that vanish from the network.
"""
GONE = (
    "another process of this training has ended; its own message, or the launcher's, says why. "
    "Checkpoints are intact: the same command continues"
)
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

T = TypeVar("T")


class Elsewhere(Exception):
    """Another process failed and says why; empty where nobody needs to hear of it again."""


@dataclass(frozen=True)
class World:
    """One process among those that train together; alone there is nothing to exchange."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def together(self, action: Callable[[], T]) -> T:
        """Do something everywhere that may fail anywhere: then nobody goes on.

        Raises:
            Elsewhere: it failed in another process, of those that failed the first to speak.
        """
        if self.size == 1:
            return action()
        failure: Exception | None = None
        try:
            result = action()
        except Exception as error:
            failure = error
        failed = self.gathered(failure is not None)
        if not any(failed):
            return result
        if failure is not None and failed.index(True) == self.rank:
            raise failure
        raise self.elsewhere()

    def by_first(self, action: Callable[[], T]) -> T:
        """What the first process finds, for all; the others wait meanwhile."""
        return self.gathered(self.together(lambda: action() if self.first else None))[0]  # type: ignore[return-value]

    def highest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, to the bit the same in all."""
        for bucket in _buckets(tensors) if self.size > 1 else ():
            together = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(together)
            parts = together.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def add_up_gradients(self, parameters: Sequence[nn.Parameter], numbers: Tensor) -> None:
        """Replace gradients, and some numbers beside them, by their sums over the processes.

        A parameter that had no use here, but had one elsewhere, has a gradient afterwards.
        """
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        gradients = []
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        self.add_up([*gradients, numbers])

    def require_same(self, parameters: Iterable[Tensor], step: int) -> None:
        """That all processes are at one step and hold the same weights, to the bit.

        Raises:
            RuntimeError: they do not; nothing that follows would be the training of one model.
        """
        if self.size == 1:
            return
        own = [step, *(_fingerprint(parameter) for parameter in parameters)]
        everyone = self.gathered(own)
        if any(other[0] != step for other in everyone):
            steps = ", ".join(str(other[0]) for other in everyone)
            raise RuntimeError(
                f"the processes are at steps {steps}: the run folder must be one folder that all "
                "of them see"
            )
        if any(other != own for other in everyone):
            raise RuntimeError(
                f"the processes hold different weights after step {step}: do they run one version "
                "on devices of one kind? The last checkpoint is intact"
            )

    def elsewhere(self) -> Elsewhere:
        """What to raise where another process has failed; the first one tells it."""
        return Elsewhere(GONE if self.first else "")


ALONE = World()


@contextmanager
def joined(training: Training) -> Generator[World, None, None]:
    """Join the processes that a launcher started, by the variables that torchrun sets; without a
    launcher, or in a group of one, alone. A group that the program has made itself is used as it
    is.

    Raises:
        ValueError: the batch does not divide, a process has no GPU of its own, or the launcher's
            variables are incomplete.
        Elsewhere: another process ended before this one.
    """
    made = not dist.is_initialized()
    world = _of_launcher() if made else World(dist.get_rank(), dist.get_world_size())
    if world.size == 1:
        yield ALONE
        return
    # Each says for itself what is wrong so far: the launcher ends all where one ends first.
    _check_batch(training.batch_size, world.size)
    backend = _backend(training.device)
    # The first step of an optimizer imports this, and it keeps any group that it finds: the group's
    # threads then outlive it, and now and then abort the process where Python ends
    # (pytorch/pytorch#179291). Imported first it finds none.
    importlib.import_module("torch._dynamo")
    try:
        if made:
            dist.init_process_group(
                backend, timeout=PATIENCE, rank=world.rank, world_size=world.size
            )
        yield world
        if made:  # after a failure it ends with the process: others may be gone, and not answer
            world.gathered(None)
            dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST):
            raise world.elsewhere() from error
        raise


def _of_launcher() -> World:
    environment = os.environ
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in environment]:
        raise ValueError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start with "
            f"`torchrun --nproc-per-node {size} -m triptych train ...`, or unset WORLD_SIZE"
        )
    return World(int(environment["RANK"]), size)


def _check_batch(batch_size: int, size: int) -> None:
    if batch_size % size:
        below = batch_size // size * size
        near = [str(fitting) for fitting in (below, below + size) if fitting]
        raise ValueError(
            f"a batch of {batch_size} does not divide into {size} processes: take --batch-size "
            + " or ".join(near)
        )


def _backend(choice: str) -> str:
    """gloo between CPUs, NCCL between GPUs, of which each process takes its own."""
    device = runtime.device(choice)
    if device.type != "cuda":
        return "gloo"
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"each process takes a GPU of its own: give --device cuda, not {choice}")
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > there or own >= there:
        raise ValueError(
            f"there are more processes on this machine than its {there} GPUs: lower "
            "--nproc-per-node, or add --device cpu"
        )
    torch.cuda.set_device(own)
    return "cpu:gloo,cuda:nccl"


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one kind, up to `BUCKET` numbers together."""
    bucket: list[Tensor] = []
    count = 0
    for tensor in tensors:
        if bucket and (count + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, count = [], 0
        bucket.append(tensor)
        count += tensor.numel()
    if bucket:
        yield bucket


def _fingerprint(tensor: Tensor) -> int:
    """A whole number of a tensor's bits, whatever the order of summation."""
    return int(tensor.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))


class Sum(torch.autograd.Function):
    """The sum over the processes; what depends on it here depends on everyone's part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone()
        dist.all_reduce(whole)
        return whole


class WholeBatchNorm(nn.Module):
    """Batch norm over the batch of all processes (arXiv:1502.03167, algorithm 1), in the place of a
    module whose weights and running means it shares.

    Written out, since torch's own form of it exists for GPUs alone. The mean first, and then the
    deviations from it: exact where a mean is far from zero.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        assert norm.momentum is not None
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.train(norm.training)

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        given, x = x.dtype, x.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        items = x.new_tensor([x.numel() / x.shape[1]])
        sums, count = Sum.apply(torch.cat([x.sum(axes), items])).split([x.shape[1], 1])
        count = count.detach()
        off = x - (sums / count).view(shape)
        variance = Sum.apply(off.square().sum(axes)) / count
        with torch.no_grad():
            self.get_buffer("num_batches_tracked").add_(1)
            mean.lerp_(sums / count, self.momentum)
            var.lerp_(variance * count / (count - 1), self.momentum)
        scale = (self.weight * (variance + self.eps).rsqrt()).view(shape)
        normal: Tensor = off * scale + self.bias.view(shape)
        return normal.to(given)


def normalise_whole_batches(model: nn.Module) -> None:
    """Let every batch norm in a model see the batch of all processes; names and weights stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, WholeBatchNorm(child))

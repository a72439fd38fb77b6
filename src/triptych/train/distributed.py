"""Data-parallel training: the processes that train together, and what they exchange.

Every process holds the model and reads its share of every batch. After backward the gradients are
summed explicitly and divided by the number of all items: an objective calls parts of a module,
which a wrapper such as DistributedDataParallel would not see. What follows from the sums (norms,
clipping, moments, averages) is then the same everywhere and needs no exchange. The first process
writes; the others wait for it in the next exchange.

A process that fails closes its connections, which ends the exchange that the others wait in.

Dimensions: B items, C channels.
"""

import importlib
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F

from triptych import runtime
from triptych.train.settings import Training

BUCKET = 1 << 24  # numbers in one all-reduce: 64 MiB in float32
TIMEOUT = timedelta(hours=2)
"""The others wait while the first process samples, evaluates and saves. A process that ends closes
its connections; the timeout is for machines that vanish from the network.
"""
OTHER_ENDED = (
    "another process of this training has ended; its own message, or the launcher's, says why. "
    "What was saved before is intact: the same command continues"
)
LOST_CONNECTION = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

T = TypeVar("T")


class OtherProcessFailed(Exception):
    """Another process failed and says why; without a message in all but the first process."""


@dataclass(frozen=True)
class World:
    """One of the processes that train together; a single one exchanges nothing."""

    rank: int = 0
    size: int = 1
    shards: bool = False
    """Whether each process holds a share of the weights (`train/shards.py`) instead of all."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def run_on_all(self, action: Callable[[], T]) -> T:
        """Run an action in every process; if it fails in one, all raise.

        Raises:
            OtherProcessFailed: it failed in a process of lower rank, or only in others.
        """
        if self.size == 1:
            return action()
        failure: Exception | None = None
        try:
            result = action()
        except Exception as error:
            failure = error
        failed = self.gather(failure is not None)
        if not any(failed):
            return result
        if failure is not None and failed.index(True) == self.rank:
            raise failure
        raise self.other_failed()

    def run_on_first(self, action: Callable[[], T]) -> T:
        """Run an action in the first process alone, and return its result in all."""
        return self.gather(self.run_on_all(lambda: action() if self.first else None))[0]  # type: ignore[return-value]

    def maximum(self, number: int) -> int:
        """The largest number of all processes."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, bit-identical in all."""
        for bucket in _buckets(tensors) if self.size > 1 else ():
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def add_up_gradients(self, parameters: Sequence[nn.Parameter], numbers: Tensor) -> None:
        """Replace gradients, and some further numbers, by their sums over the processes.

        A parameter that was used in another process only has a gradient afterwards too. Those that
        are shared out have shares of the sums already.
        """
        parameters = [p for p in parameters if not is_share(p)]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        gradients = []
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        self.add_up([*gradients, numbers])

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The common norm of gradients, from what this process holds of each."""
        if not self.shards:
            return nn.utils.get_total_norm(gradients)
        shares = [own_part(gradient) for gradient in gradients if is_share(gradient)]
        squares = nn.utils.get_total_norm(shares).square()
        dist.all_reduce(squares)
        whole = nn.utils.get_total_norm([g for g in gradients if not is_share(g)])
        return (squares + whole.square()).sqrt()

    def require_same(self, parameters: Iterable[Tensor], step: int) -> None:
        """Check that all processes are at the same step and hold bit-identical weights, where they
        are not shared out.

        Raises:
            RuntimeError: they do not.
        """
        if self.size == 1:
            return
        own = [step, *(_fingerprint(p) for p in parameters if not is_share(p))]
        everyone = self.gather(own)
        if any(other[0] != step for other in everyone):
            steps = ", ".join(str(other[0]) for other in everyone)
            raise RuntimeError(
                f"the processes are at steps {steps}: the run folder must be one folder that all "
                "of them see"
            )
        if any(other != own for other in everyone):
            raise RuntimeError(
                f"the processes hold different weights after step {step}: do they run one version "
                "on devices of one kind? What was saved before is intact"
            )

    def other_failed(self) -> OtherProcessFailed:
        """The error to raise where another process has failed."""
        return OtherProcessFailed(OTHER_ENDED if self.first else "")


SINGLE_PROCESS = World()


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is shared out: a DTensor, whose module takes seconds to import."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; of one that is not shared out, the tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """A tensor with what the other processes hold of it, if it is shared out; all must ask."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def own_rows(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that would be shared out like another one."""
    if not is_share(like):
        return tensor
    return tensor.chunk(dist.get_world_size())[dist.get_rank()]  # as FSDP shares out rows


@contextmanager
def join_processes(training: Training) -> Generator[World, None, None]:
    """Join the processes that a launcher such as torchrun started, by its environment variables.

    Without a launcher, or with one process, this is `SINGLE_PROCESS`. A process group that the
    program has initialised already is used and kept.

    Raises:
        ValueError: the batch does not divide, there are too few GPUs, or the launcher's variables
            are incomplete.
        OtherProcessFailed: another process ended before this one.
    """
    made = not dist.is_initialized()
    world = _read_launcher() if made else World(dist.get_rank(), dist.get_world_size())
    if world.size == 1:
        yield SINGLE_PROCESS
        return
    world = replace(world, shards=training.shard)
    # Every process reports these errors itself: the launcher ends all when the first one ends.
    _check_batch(training.batch_size, world.size)
    backend = _backend(training.device)
    # An optimizer's first step imports this module, which keeps a reference to a group that exists.
    # The group's threads then outlive it and sometimes abort the process at exit
    # (pytorch/pytorch#179291). Imported now, it finds no group.
    importlib.import_module("torch._dynamo")
    try:
        if made:
            store, *_ = next(rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
            dist.init_process_group(
                backend,
                store=begin_round(store, world),
                timeout=TIMEOUT,
                rank=world.rank,
                world_size=world.size,
            )
        yield world
        if made:  # not after a failure: others may have ended, and would not answer
            world.gather(None)
            dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(s in str(error) for s in LOST_CONNECTION):
            raise world.other_failed() from error
        raise


def begin_round(store: Store, world: World) -> Store:
    """A part of the launcher's store that no earlier start of the processes has written to.

    torchrun keeps one store over its restarts, and in it the addresses of processes that are dead:
    who reads one before it is replaced waits for ever. The first process names a new part, and
    tells it to those that are here now, each by a number that it has drawn itself.
    """
    own = secrets.token_hex(8)
    if not world.first:
        store.set(f"here/{world.rank}", own)
        part = store.get(f"part/{own}").decode()  # waits
        store.set(f"{part}/{world.rank}", "")
        return PrefixStore(part, store)
    missing = set(range(1, world.size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{own}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"here/{rank}"]):  # now, or before the restart
                store.set(f"part/{store.get(f'here/{rank}').decode()}", own)
        time.sleep(0.01)
    return PrefixStore(own, store)


def _read_launcher() -> World:
    environment = os.environ
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE_PROCESS
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
        near = " or ".join(str(fitting) for fitting in (below, below + size) if fitting)
        raise ValueError(
            f"a batch of {batch_size} does not divide into {size} processes: take --batch-size "
            f"{near}"
        )


def _backend(choice: str) -> str:
    """gloo between CPUs, NCCL between GPUs, one for each process."""
    device = runtime.device(choice)
    if device.type != "cuda":
        return "gloo"
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"every process uses another GPU: give --device cuda, not {choice}")
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus or local_rank >= gpus:
        raise ValueError(
            f"there are more processes on this machine than its {gpus} GPUs: lower "
            "--nproc-per-node, or add --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, up to `BUCKET` numbers."""
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
    """The sum of a tensor's bytes, an integer: the order of summation does not matter."""
    return int(tensor.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))


class Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(nn.Module):
    """Batch norm over the batch of all processes (arXiv:1502.03167, algorithm 1). It shares weights
    and running means with the module that it replaces.

    torch's SyncBatchNorm is for GPUs alone. The mean is computed before the deviations from it,
    which is exact where a mean is far from zero.
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
        dtype, x = x.dtype, x.float()
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
        return normal.to(dtype)


def sync_batch_norms(model: nn.Module) -> None:
    """Replace every batch norm of a model by one over the batch of all processes; names and weights
    stay.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, SyncedBatchNorm(child))

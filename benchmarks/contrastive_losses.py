"""Seconds and memory of both contrastive losses, forward and backward, against the full matrix.

The full matrix is what one writes without a library: all logits, `cross_entropy` in both directions
or `logsigmoid` of all of them, and automatic differentiation. Times are interleaved pairs in two
processes that wait for one another, so that neither has the other's memory; a memory figure is the
growth of the process's peak over its inputs, gradients included.

    python benchmarks/contrastive_losses.py [BATCH [PAIRS]]     (16,384 pairs, 3 times: ten minutes)
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import measure
import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.nn.contrastive.losses import sigmoid_loss, softmax_loss

WIDTH, THREADS = 768, 2


def full_softmax(image: Tensor, text: Tensor, scale: Tensor, _: Tensor) -> Tensor:
    logits = scale.exp() * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def full_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale.exp() * image @ text.T + bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "softmax-ours": lambda image, text, scale, _: softmax_loss(image, text, scale),
    "sigmoid-ours": sigmoid_loss,
    "softmax-full": full_softmax,
    "sigmoid-full": full_sigmoid,
}


def worker(name: str, batch: int, precision: str) -> None:
    """For every line on stdin one forward and backward pass, its figures on stdout."""
    torch.set_num_threads(THREADS)
    dtype = getattr(torch, precision)
    torch.manual_seed(0)
    image, text = (
        F.normalize(torch.randn(batch, WIDTH), dim=-1).to(dtype).requires_grad_() for _ in range(2)
    )
    scalars = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (2.3026, -10.0)]
    inputs = [image, text, *scalars]
    few = [x.detach()[:64] if x.ndim else x for x in inputs]
    LOSSES[name](*(x.detach().requires_grad_() for x in few)).backward()  # threads, code
    before = resident()
    for _ in sys.stdin:
        for x in inputs:
            x.grad = None
        began = time.perf_counter()
        loss = LOSSES[name](*inputs)
        loss.backward()
        seconds = time.perf_counter() - began
        more = peak() - before
        print(json.dumps([seconds, more / 1e9, loss.item(), image.grad.float().norm().item()]))
        sys.stdout.flush()


def peak() -> int:
    """The most bytes so far; not ru_maxrss, which begins at the peak of the parent process."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """A process that computes one loss when asked."""

    def __init__(self, name: str, batch: int, precision: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "worker", name, str(batch), precision],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.gigabytes = self.loss = self.norm = 0.0

    def __call__(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, self.gigabytes, self.loss, self.norm = json.loads(self.process.stdout.readline())
        return float(seconds)

    def close(self) -> None:
        self.process.communicate()


def compare(loss: str, batch: int, pairs: int) -> None:
    ours, full = (Worker(f"{loss}-{kind}", batch, "float32") for kind in ("ours", "full"))
    ours(), full()  # the first time pays for fresh memory
    a, b = measure.pairs(ours, full, pairs)
    ratios = [theirs / mine for mine, theirs in zip(a, b, strict=True)]
    measure.emit(
        benchmark="contrastive_losses",
        loss=loss,
        batch=batch,
        width=WIDTH,
        precision="float32",
        pairs=pairs,
        seconds=statistics.median(a),
        full_seconds=statistics.median(b),
        ratio=statistics.median(ratios),
        interval=measure.interval(ratios),
        gigabytes=ours.gigabytes,
        full_gigabytes=full.gigabytes,
        value_difference=abs(ours.loss - full.loss) / full.loss,
        gradient_norm_difference=abs(ours.norm - full.norm) / full.norm,
        **measure.machine(),
    )
    ours.close(), full.close()


def alone(batch: int) -> None:
    """The sigmoid loss at a size whose full matrix has no room."""
    ours = Worker("sigmoid-ours", batch, "bfloat16")
    seconds = ours()
    measure.emit(
        benchmark="contrastive_losses",
        loss="sigmoid",
        batch=batch,
        width=WIDTH,
        precision="bfloat16",
        seconds=seconds,
        gigabytes=ours.gigabytes,
        **measure.machine(),
    )
    ours.close()


def main(batch: int = 16_384, pairs: int = 3) -> None:
    torch.set_num_threads(THREADS)
    for loss in ("sigmoid", "softmax"):
        compare(loss, batch, pairs)
    alone(2 * batch)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main(*map(int, sys.argv[1:]))

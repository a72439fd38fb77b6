"""Timing for every benchmark: interleaved pairs, an interval for a median, the machine."""

import json
import os
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from triptych import runtime

# The peers import torchvision where it is installed, and its compiled operators are missing on CPU
# builds of torch: declared, it imports, and nothing here calls them.
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")


PRECISIONS = ("float32", "bfloat16", "default")


def precisions(chosen: str) -> tuple[torch.dtype, torch.dtype]:
    """Ours and the peer's; `default` is what each takes without being asked."""
    if chosen == "default":
        chosen = runtime.precision("auto", torch.device("cpu"))
        return getattr(torch, chosen), torch.float32
    return getattr(torch, chosen), getattr(torch, chosen)


def machine() -> dict[str, Any]:
    """What the figures were measured on; `load` says whether anything else was running."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def pairs(
    ours: Callable[[], float], theirs: Callable[[], float], count: int
) -> tuple[list[float], list[float]]:
    """Both measured `count` times in turns, each first every second time: drift meets both."""
    a, b = turns((ours, theirs), count)
    return a, b


def turns(contenders: Sequence[Callable[[], float]], count: int) -> list[list[float]]:
    """As `pairs`, of any number: what each measured, every second time in the reverse order."""
    found: list[list[float]] = [[] for _ in contenders]
    for turn in range(count):
        for measure, into in list(zip(contenders, found, strict=True))[:: 1 if turn % 2 else -1]:
            into.append(measure())
    return found


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]


def emit(**figures: Any) -> None:
    """One JSON line on stdout; figures with five digits."""
    short = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(short), flush=True)

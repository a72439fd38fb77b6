"""How many CPU threads a command uses. No torch until it is used."""

import os
import sys
from typing import TYPE_CHECKING

from triptych.cli.output import UsageError

if TYPE_CHECKING:
    from torch import nn

THREADS = "OMP_NUM_THREADS"  # read by OpenMP: torch, and the processes that read pictures
SPINS = "GOMP_SPINCOUNT"  # read by GNU's OpenMP, which torch's builds for Linux use
CHOICES = (SPINS, "OMP_WAIT_POLICY")
SHORT = "10000"  # turns, some tens of microseconds: between two layers of a network


def wait_briefly() -> None:
    """Let threads that wait for each other spin for a short time, then sleep, unless the user has
    chosen otherwise.

    By default they spin for milliseconds, which takes the core from the very thread they wait for
    where other programs run: two threads then need many times the CPU time of one. Asleep at once,
    a step on idle cores takes up to a quarter longer (`benchmarks/threads.py`). To be called before
    torch is imported.
    """
    if not any(choice in os.environ for choice in CHOICES):
        os.environ[SPINS] = SHORT


def set_threads(text: str) -> None:
    """Use this number of threads.

    Raises:
        UsageError: it is not a whole number of at least 1.
    """
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise UsageError(f"--threads takes a whole number of at least 1, not {text!r}")
    os.environ[THREADS] = text
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(text))


def spare_threads(model: "nn.Module", examples: int) -> None:
    """Use one thread for small work, unless the user has chosen a number.

    The result depends on the number of threads, within rounding. It is chosen by the size of the
    work alone, so that the same command gives the same bits.
    """
    if THREADS in os.environ:
        return
    import torch

    from triptych.runtime import is_small

    if is_small(model, examples):
        torch.set_num_threads(1)

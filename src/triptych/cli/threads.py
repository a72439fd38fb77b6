"""How many CPU threads a command uses. No torch until it is used."""

import os
import sys
from typing import TYPE_CHECKING

from triptych.cli.output import UsageError

if TYPE_CHECKING:
    from torch import nn

THREADS = "OMP_NUM_THREADS"  # read by OpenMP: torch, and the processes that read pictures
WAITING = "OMP_WAIT_POLICY"
SMALL = 50e6
"""Parameters times examples of a step below which one thread computes it. A step of a VAE of
108,000 parameters and 128 digits takes 4.6 ms of one core: too little to share out. Figures:
`benchmarks/threads.py`.
"""


def wait_asleep() -> None:
    """Let threads sleep while they wait for each other, unless the user has chosen otherwise.

    OpenMP lets them spin, which pays on idle cores. Beside other programs, two threads then need 14
    times the CPU time of one for a step of that VAE; asleep 1.4 times. To be called before torch is
    imported.
    """
    os.environ.setdefault(WAITING, "PASSIVE")


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
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if THREADS not in os.environ and parameters * examples < SMALL:
        import torch

        torch.set_num_threads(1)

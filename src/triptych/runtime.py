"""Device, precision and seeds; a picture's noise never depends on batch size or device."""

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit seed from a hash of the parts: the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def cache_folder(name: str) -> Path:
    """The user's cache folder, for files that can be rebuilt, such as indexes; it may not exist."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")  # must be absolute (XDG base directories)
    root = Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache"
    return root / "triptych" / name


def device(choice: str = "auto") -> torch.device:
    """`auto` is the first accelerator, else the CPU.

    Raises:
        ValueError: the device does not exist here.
    """
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(choice)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        there = ", ".join(["auto", "cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())])
        raise ValueError(
            f"there is no device {choice!r} on this machine: choose one of {there}"
        ) from error
    return chosen


@cache
def _read_processor_info() -> str:
    information = Path("/proc/cpuinfo")
    return information.read_text() if information.exists() else ""


def multiplies_bfloat16() -> bool:
    """Whether this CPU has quick products in bfloat16 and no tiles of them (AMD since Zen 4).

    AVX512-BF16 alone doubles the speed on AMD's cores and halves it on Intel's without AMX (82
    against 155 GFLOP/s on one, docs/results.md).
    """
    facts = _read_processor_info()
    return "avx512_bf16" in facts and "amx_bf16" not in facts and "AuthenticAMD" in facts


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32 (which it else emulates)."""
    return multiplies_bfloat16() or "amx_bf16" in _read_processor_info()


def precision(choice: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` is the faster one that the device has instructions for."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and fast_bfloat16() else "float32"


def refuse_float16(dtype: torch.dtype | None) -> None:
    """Raises ValueError for float16, in which Gemma overflows (transformers issue 39972)."""
    if dtype == torch.float16:
        raise ValueError(
            "Gemma's activations reach 800,000 and float16 ends at 65,504, so it would answer with "
            "nonsense: choose bfloat16 or float32"
        )


def noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal noise, (len(seeds), *shape), float32 on the CPU: row i depends on seeds[i]
    alone.
    """
    rows = [torch.randn(tuple(shape), generator=generator(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


SMALL = 50e6
"""Parameters times examples of a step below which one thread computes it. A step of a VAE of
108,000 parameters and 128 digits takes 4.6 ms of one core: too little to share out. Figures:
`benchmarks/threads.py`.
"""


def is_small(model: torch.nn.Module, examples: int) -> bool:
    """Whether one thread is enough for a step of this many examples."""
    return sum(parameter.numel() for parameter in model.parameters()) * examples < SMALL


def generator(seed: int) -> torch.Generator:
    """A new CPU generator with this seed."""
    return torch.Generator().manual_seed(seed)


def drawn_seed() -> int:
    """A random seed, short enough to type again."""
    return int(
        torch.randint(0, 2**32 - 1, (), generator=torch.Generator().manual_seed(torch.seed()))
    )

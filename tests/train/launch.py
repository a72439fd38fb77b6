"""Starts the processes of a training as a launcher does."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
FOREVER = 3600.0  # seconds after which processes count as hanging, however busy the machine is


def write_pictures(folder: Path, colours: Sequence[str]) -> None:
    """Forty small pictures with captions of twenty things in three colours."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(40):
        path = folder / f"{i:02d}.png"
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"{colours[i % 3]} thing {i % 20}")


def environment(**further: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | further


def start(arguments: Sequence[str], folder: Path, size: int = 2) -> list[subprocess.Popen[str]]:
    """Processes as a launcher starts them, without its watching over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_launcher = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **of_launcher),
        )
        for rank in range(size)
    ]  # fmt: skip


def wait(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        printed = [process.communicate(timeout=FOREVER) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *streams) for p, streams in zip(processes, printed, strict=True)]

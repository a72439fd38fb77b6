"""A chain killed in every part, and continued until it is done, ends like one left alone.

torch takes seconds to load, so one driver loads it, and forks a process for every life.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PARTS = ["clip", "prior", "autoregressive", "decoder", "upsampler-1"]


def drive(folder: Path) -> None:
    """An unbroken run; then lives of another that end after one step of a part, or, where there is
    none left, in the first moments of putting the parts together.
    """
    import torch

    torch.set_num_threads(1)
    from tests.faults.interruption import live
    from tests.systems.unclip.test_training import chain_of, shrink_presets, write_eight
    from triptych.training import train

    shrink_presets(pytest.MonkeyPatch())
    request = chain_of(write_eight(folder / "eight.npz"))
    began = time.monotonic()
    assert live(lambda: train(request, folder / "whole")) == 0
    part = (time.monotonic() - began) / 10  # about one step, and what is before it
    draw, at = random.Random(0), []
    while True:
        # also in the first moments of a life: building, embeddings, putting together
        code = live(lambda: train(request, folder / "killed"), draw.choice((0, 1, 1)),
                    draw.uniform(0, part))  # fmt: skip
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        at.append([name for name in PARTS if (folder / "killed" / name).exists()][-1:])
    assert all([name] in at for name in PARTS), at
    whole, killed = (digests(folder / name) for name in ("whole", "killed"))
    assert len(whole) > 3 * len(PARTS) and whole == killed


def digests(run: Path) -> dict[str, bytes]:
    """All that a chain leaves, apart from times and the paths of its folders."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json", "latest")
    }


@pytest.mark.slow
def test_a_chain_killed_in_every_part_ends_the_same(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.systems.unclip.test_kills import drive; "
        f"drive(Path({str(tmp_path)!r}))"
    )
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]

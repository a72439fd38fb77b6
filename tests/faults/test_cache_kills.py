"""A process that fills a cache, killed at random moments, and continued until it is done, leaves
the files of one left alone.

torch takes seconds to load, so one driver loads it, and forks a process for every life. The driver
waits for a random number of reports, and then a random part of the work up to the next.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def drive(folder: Path, kills: int) -> None:
    import torch

    torch.set_num_threads(1)
    from tests.faults.interruption import live
    from tests.systems.stable_diffusion.tiny_stable_diffusion import config, model
    from tests.systems.stable_diffusion.training.test_latent_cache import CODER, cache_of, write
    from triptych.systems.stable_diffusion.training import cached_latents, fill_cache

    cached_latents.SHARD = fill_cache.TEXTS = fill_cache.MOST = 2
    pictures = write(folder / "pictures", 41)
    made = model(config(autoencoder=CODER))

    began = time.monotonic()
    assert live(lambda: cache_of(pictures, made, folder / "whole").fill()) == 0
    part = (time.monotonic() - began) / 40  # about one report
    draw, killed = random.Random(kills), 0
    while killed < kills:  # one that is to give no report never ends by itself
        reports, delay = draw.randrange(4), draw.uniform(0, part)
        code = live(lambda: cache_of(pictures, made, folder / "killed").fill(), reports, delay)
        assert code in (0, -signal.SIGKILL), code
        killed += code != 0
    assert live(lambda: cache_of(pictures, made, folder / "killed").fill()) == 0
    found = [
        {
            p.relative_to(folder / root): p.read_bytes()
            for p in (folder / root).rglob("*")
            if ".safetensors" in p.name
        }
        for root in ("whole", "killed")
    ]
    assert len(found[0]) > 30
    assert found[0] == found[1]  # and nothing is left of what was being written


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_and_continued_it_is_the_cache_of_one_life(tmp_path: Path, kills: int) -> None:
    code = (
        "from pathlib import Path; from tests.faults.test_cache_kills import drive; "
        f"drive(Path({str(tmp_path)!r}), {kills})"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]

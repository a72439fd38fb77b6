"""A trainer killed at random moments, and continued until it is done, ends like one left alone.

torch takes seconds to load, so one driver loads it, and forks a trainer for every life. The driver
waits for a random number of steps, and then a random part of the next: how far a trainer gets does
not depend on how busy the machine is.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 30  # for every kill
COMPARED = ("latest", "config.json", "tokenizer.json", "words.json")
FOREVER = 7200.0  # seconds after which the driver counts as hanging


def drive(folder: Path, kills: int) -> None:
    """The driver: an unbroken run in one fork, then lives of another run that end in SIGKILL."""
    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # an optimizer's first step would import it, seconds in every life

    from tests.faults.interruption import live
    from tests.train.toy import regression
    from triptych.requests import Training
    from triptych.train.journal import lock_run
    from triptych.train.loop import Report, fit

    steps = STEPS * kills
    training = Training(
        steps=steps, save_every=3, log_every=2, sample_every=5, ema_halflife=4, seed=7
    )

    def train(run: Path) -> Iterator[Report]:
        with lock_run(run):
            yield from fit(regression(), training, run)

    began = time.monotonic()
    assert live(lambda: train(folder / "whole")) == 0
    step = (time.monotonic() - began) / steps
    draw = random.Random(kills)
    torn, reached = 0, set()
    for life in range(kills):
        # With fewer steps each than `STEPS` the last is still killed.
        code = live(
            lambda: train(folder / "killed"), draw.randrange(STEPS), draw.uniform(0, 3 * step)
        )
        if code != -signal.SIGKILL:
            raise SystemExit(f"life {life} ended with {code}")
        reached.add(max((p.name for p in (folder / "killed").glob("step-*")), default=""))
        torn += any((folder / "killed").glob("*.tmp-*"))
    assert live(lambda: train(folder / "killed")) == 0
    print(json.dumps({"torn": torn, "reached": len(reached)}))


def digests(run: Path) -> dict[str, str]:
    """All that a run leaves, apart from times and what the times change the length of."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.suffix in (".safetensors", ".png") or path.name in COMPARED
    }


def without_times(path: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_and_continued_equals_unbroken(tmp_path: Path, kills: int) -> None:
    # In memory where there is one: it is the moments that count, and they are more of them there.
    shared = Path("/dev/shm")
    folder = shared / f"triptych-{os.getpid()}" if os.access(shared, os.W_OK) else tmp_path
    folder.mkdir(exist_ok=True)
    try:
        driver = subprocess.run(
            [sys.executable, "-m", "tests.faults.test_kills", str(folder), str(kills)],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=FOREVER,
        )  # fmt: skip
        assert driver.returncode == 0, driver.stderr
        reached = json.loads(driver.stdout)["reached"]
        assert reached > kills // 2  # checkpoints, so the moments differed
        whole, killed = folder / "whole", folder / "killed"
        assert digests(whole) == digests(killed)
        rows = without_times(killed / "metrics.jsonl")
        assert rows == without_times(whole / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(2, STEPS * kills + 1, 2))
        assert {p.name for p in whole.iterdir()} == {p.name for p in killed.iterdir()}
    finally:
        if folder != tmp_path:
            shutil.rmtree(folder)


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]))

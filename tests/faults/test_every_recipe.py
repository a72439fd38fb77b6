"""Every recipe killed, cut off from the power and refused writes, and continued until it is done.

It ends like one left alone.

torch takes seconds to load, so one driver for each recipe loads it, and forks a process for every
life, as `test_kills.py` does with a toy.
"""

import contextlib
import errno
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.interruption import Disk, dies, live, record
from tests.faults.test_kills import FOREVER, ROOT, digests, without_times
from triptych.systems import RECIPES

STEPS = 6
FAULTS = (
    ("fail", errno.EIO), ("fail", errno.ENOSPC), ("refuse", errno.EROFS), ("refuse", errno.ENOSPC),
)  # fmt: skip
UNTIDY = re.compile(r"^run/(latest|\.latest\.tmp-\d+|step-000002)\b")
"""What a last save that was interrupted leaves: the run is finished, and no save follows."""
CHAINS = ("unclip",)  # of trainings one after the other: tests/systems/unclip/test_kills.py
CACHED = ("text-to-image-latents",)
NAMES = sorted({*RECIPES, *CACHED} - {*CHAINS})


def tiny_requests(folder: Path) -> dict[str, Any]:
    """A request of a few thousand weights for each recipe; writes what they learn from. Those with
    a cache say so.
    """
    import numpy as np

    from tests.learning.test_recipes import REPRESENTATIVE, SMALL
    from tests.systems.unclip.test_training import PARTS, write_clip, write_eight
    from triptych.requests import Training, TrainLanguage, TrainMaskCodes
    from triptych.systems import find_recipe

    folder.mkdir()
    eight, clip = write_eight(folder / "eight.npz"), str(write_clip(folder / "clip"))
    names, vectors = np.array([str(k) for k in range(8)]), np.eye(8, 10, dtype=np.float32)
    np.savez(folder / "words.npz", words=names, vectors=vectors)
    lines = [f"the {word} is {n}\n" for n in range(60) for word in ("cat", "dog", "fox")]
    (folder / "lines.txt").write_text("".join(lines))
    given = {"clip": clip, "words": str(folder / "words.npz"), "cache": "given later"}
    parts = [replace(part, **{k: v for k, v in given.items() if hasattr(part, k)})
             for part in PARTS.values()]  # fmt: skip
    found = {find_recipe(each): each for each in (*REPRESENTATIVE.values(), *parts)}
    found["word-space"] = replace(found["word-space"], words=given["words"])
    found["language"] = TrainLanguage(
        width=32, layers=2, heads=2, head_width=16, hidden=64, vocabulary=330, length=16, window=8
    )
    found["mask-codes"] = TrainMaskCodes(down=(4, 6, 8, 10), width=16, code_width=5)
    latents: dict[str, Any] = SMALL | {"widths": (16,), "transformers": (1,), "cache": "later"}
    coder = str(folder / "autoencoder")
    found[CACHED[0]] = type(found["text-to-image"])(**latents, autoencoder=coder)
    data = {"language": folder / "lines.txt", "mask-codes": "scenes-one"}
    training = Training(
        batch_size=8, steps=STEPS, save_every=2, log_every=1, sample_every=4, ema_halflife=3,
        device="cpu", seed=3,
    )  # fmt: skip
    return {
        name: replace(each, training=replace(training, data=str(data.get(name, eight))))
        for name, each in found.items()
    }


def train_in(request: Any, place: Path) -> Any:
    """The reports of a training in `place`/run, with its cache beside it."""
    from triptych.training import train

    if getattr(request, "cache", ""):
        request = replace(request, cache=str(place / "cache"))
    return train(request, place / "run")


def finish(request: Any, place: Path) -> None:
    deque(train_in(request, place), maxlen=0)


def left_in(place: Path, pictures: bool = True) -> dict[str, Any]:
    """All that a training leaves, without times, and without what a next save would tidy up; grids
    may be lost with the power.
    """
    found: dict[str, Any] = {
        name: digest
        for name, digest in digests(place).items()
        if not UNTIDY.search(name) and (pictures or not name.endswith(".png"))
    }
    found["names"] = {
        path.name for path in (place / "run").iterdir() if not UNTIDY.search(f"run/{path.name}")
    }
    return found | {"rows": without_times(place / "run" / "metrics.jsonl")}


def require_same(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    names = found.keys() | expected.keys()
    differ = sorted(name for name in names if found.get(name) != expected.get(name))
    assert not differ, f"{differ}: {where}"


def end_lives(request: Any, folder: Path, kills: int, draw: random.Random) -> Counter[str]:
    """Lives that end at random, two thirds by SIGKILL and the others at an operation of the disk,
    torn or with the power; a training that comes to its end is compared, and begins again.
    """
    began = time.monotonic()
    assert live(lambda: train_in(request, folder / "whole")) == 0
    step = (time.monotonic() - began) / STEPS
    whole = {pictures: left_in(folder / "whole", pictures) for pictures in (True, False)}
    ended: Counter[str] = Counter()

    def compare(place: Path, pictures: bool) -> None:
        require_same(left_in(place, pictures), whole[pictures], f"after {dict(ended)}")
        ended["compared"] += 1
        shutil.rmtree(place)

    place = folder / "killed"
    while ended["killed"] < kills - kills // 3:
        code = live(
            lambda: train_in(request, place), draw.randrange(STEPS), draw.uniform(0, 2 * step)
        )
        assert code in (0, -signal.SIGKILL), code
        ended["killed"] += code != 0
        if code == 0:
            compare(place, pictures=True)
    finish_in_fork(request, place)
    compare(place, pictures=True)
    place = folder / "cut"
    (place / "run").mkdir(parents=True)
    count = len(
        record(lambda: finish(request, folder / "counted"), Disk(folder / "counted/run", 0, ""))
    )
    shutil.rmtree(folder / "counted")
    while ended["cut"] < kills // 3:
        disk = Disk(place / "run", draw.randint(1, count), draw.choice(("cut", "torn")))
        if dies(lambda: finish(request, place), disk):
            ended["cut"] += 1
        else:
            compare(place, pictures=False)
            (place / "run").mkdir(parents=True)
    finish_in_fork(request, place)
    compare(place, pictures=False)
    return ended


def finish_in_fork(request: Any, place: Path) -> None:
    assert live(lambda: train_in(request, place)) == 0


def refuse_writes(request: Any, folder: Path, first: int, every: int) -> Counter[str]:
    """A fault at every operation of the disk in turn, or at each `every`-th from `first` on: an
    error in one sentence and exit code 1, or none; then the training ends like one left alone.
    """
    place = folder / "refused"
    alone = folder / "alone"  # a new one: in a finished run there is little to write
    names = record(lambda: finish(request, alone), Disk(alone / "run", 0, ""))
    whole = left_in(alone)
    counts: Counter[str] = Counter()
    for at in range(first, len(names) + 1, every):
        how, code = FAULTS[at // every % len(FAULTS)]
        disk = Disk(place / "run", at, how, code)
        # as killed processes do, nothing that this one has read may be known to the next
        assert live(lambda disk=disk: [fail_once(request, place, disk)]) == 0, names[at - 1]  # type: ignore[misc]
        finish_in_fork(request, place)
        where = f"{how} {errno.errorcode[code]} at operation {at}, {names[at - 1][0]}"
        require_same(left_in(place), whole, where)
        shutil.rmtree(place)
        counts[errno.errorcode[code]] += 1
    return counts


def fail_once(request: Any, place: Path, disk: Disk) -> None:
    """A training on a disk that fails, and what is said about it."""
    from triptych.cli.main import report_error
    from triptych.train import checkpoint

    said, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch.setattr)
        try:
            finish(request, place)
        except Exception as error:
            with contextlib.redirect_stderr(said):
                code = report_error(error)
            error.__traceback__ = None
    text = said.getvalue()
    if code or text:
        assert code == 1 and os.strerror(disk.code) in text and "--debug" not in text, (code, text)
        assert text.count("\n") == 1, text
    assert not checkpoint.newest(place / "run")[1]


def drive(name: str, folder: Path, kills: int, first: int, every: int) -> None:
    """The driver of one recipe."""
    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # an optimizer's first step would import it, seconds in every life

    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # nothing outlives the machine
    requests = tiny_requests(folder / "given")
    if name in CACHED:
        finish(requests["autoencoder"], folder / "made")
        (folder / "made/run").rename(folder / "given/autoencoder")
    request, began = requests[name], time.monotonic()
    ended = end_lives(request, folder, kills, random.Random(name)) if kills else Counter()
    refused = refuse_writes(request, folder, first, every) if every else Counter()
    print(json.dumps({**ended, **refused, "seconds": round(time.monotonic() - began)}))


def run_driver(name: str, folder: Path, kills: int, first: int, every: int) -> dict[str, int]:
    """What the driver of a recipe counted."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_every_recipe", name, str(folder), str(kills),
         str(first), str(every)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=FOREVER,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    counted: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_ends_like_one_left_alone(name: str, tmp_path: Path) -> None:
    """All of them take less than an hour on two cores: docs/training.md."""
    shared = Path("/dev/shm")  # in memory where there is one: more happens in the same time
    folder = shared / f"triptych-{os.getpid()}-{name}" if os.access(shared, os.W_OK) else tmp_path
    folder.mkdir(exist_ok=True)
    try:
        counts = run_driver(name, folder, kills=100, first=1, every=1)
    finally:
        if folder != tmp_path:
            shutil.rmtree(folder)
    print(f"{name}: {counts}")
    assert counts["killed"] + counts["cut"] == 100 and counts["compared"] > 4
    assert min(counts[errno.errorcode[code]] for _, code in FAULTS) > 10


if __name__ == "__main__":
    drive(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))

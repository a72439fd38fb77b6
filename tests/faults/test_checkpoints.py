"""Every file operation of a save interrupted once; what is damaged later is noticed and named."""

import errno
import hashlib
import os
import random
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.faults.interruption import Disk, deaths, dies
from tests.train.toy import regression
from triptych.cli.main import report_error
from triptych.requests import Training
from triptych.train import checkpoint, loop
from triptych.train.loop import fit

Tensors = dict[str, dict[str, Tensor]]


def training(steps: int, save_every: int = 2, keep: int = 2) -> Training:
    return Training(
        steps=steps, save_every=save_every, keep=keep, log_every=3, sample_every=2, ema_halflife=4
    )


class Scenario(NamedTuple):
    base: int  # the step whose save the folder starts from; 0: an empty folder
    damaged: bool  # the newest checkpoint of the folder is
    save: int  # the save that is interrupted
    steps: int  # where the resumed run ends


SCENARIOS = {
    "first save": Scenario(0, False, 2, 4),
    "later save, the last": Scenario(2, False, 4, 4),
    "save with prune": Scenario(4, False, 6, 8),
    "the same step again": Scenario(4, True, 4, 6),
}


class Unbroken(NamedTuple):
    folders: Path  # STEPS-STEP: the run folder of a run of STEPS steps right after its save at STEP
    history: dict[int, Tensors]  # what every step left


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unbroken]:
    folders = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        still(patch)
        for steps in (4, 6, 8):
            for report in fit(regression(), training(steps), folders / "run"):
                if report.saved:
                    shutil.copytree(folders / "run", folders / f"{steps}-{report.step}")
            shutil.rmtree(folders / "run")
        every = training(8, save_every=1, keep=99)
        saved = [report.saved for report in fit(regression(), every, folders / "every")]
    loaded = [checkpoint.load(path) for path in saved if path]
    yield Unbroken(folders, {found.step: found.tensors for found in loaded})


def still(patch: pytest.MonkeyPatch) -> None:
    """Journals without time are equal to the byte; and syncing is counted, never waited for."""
    patch.setattr(loop.time, "monotonic", lambda: 0.0)
    patch.setattr("os.fsync", lambda descriptor: None)


def content(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def equal(ours: Tensors, theirs: Tensors) -> bool:
    return ours.keys() == theirs.keys() and all(
        group.keys() == theirs[name].keys()
        and all(torch.equal(tensor, theirs[name][key]) for key, tensor in group.items())
        for name, group in ours.items()
    )


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def good(run: Path) -> int:
    return sum(not checkpoint.verify(path) for path in checkpoint.steps(run))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that is quick: hundreds of small ones are made in it."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_file_operation_interrupted_once(
    memory: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Unbroken, name: str, every: int
) -> None:
    """Every eleventh operation, and in the nightly run every one."""
    still(monkeypatch)
    scenario = SCENARIOS[name]
    start, run = memory / "start", memory / "run"
    if scenario.base:
        shutil.copytree(unbroken.folders / f"{scenario.steps}-{scenario.base}", start)
    else:
        start.mkdir()
    if scenario.damaged:
        flip(start / f"step-{scenario.base:06d}" / "model.safetensors", 200)
    before, usable = checkpoint.newest(start)[0], good(start)
    least = int(before.name[5:]) if before else 0
    whole = content(unbroken.folders / f"{scenario.steps}-{scenario.steps}")

    def work() -> None:
        for report in fit(regression(), training(scenario.steps), run):
            if report.step == scenario.save:
                break

    shutil.copytree(start, run)
    points = deaths(work, run)
    for at, how in [*points[:-1:every], points[-1]]:
        shutil.rmtree(run)
        shutil.copytree(start, run)
        assert dies(work, Disk(run, at, how)) == ((at, how) != points[-1])
        where = f"{name}, {how} operation {at}"
        path, _ = checkpoint.newest(run)
        assert good(run) >= min(2, usable), where
        if path is None:
            assert not usable, where
        else:
            found = checkpoint.load(path)
            assert least <= found.step <= scenario.save, where
            assert found.state["step"] == found.step, where
            assert equal(found.tensors, unbroken.history[found.step]), where
        for _ in fit(regression(), training(scenario.steps), run):
            pass
        now = content(run)
        if how == "cut":  # a grid may be lost with the power
            now = {k: whole[k] if k.startswith("samples/") else v for k, v in now.items()}
        if scenario.save == scenario.steps:  # no save follows that would tidy up
            now = {k: now.get(k, "") for k in whole} | {"latest": whole["latest"]}
        assert now == whole, f"{where}: {sorted(set(now.items()) ^ set(whole.items()))}"
    assert points[-1][0] > 40  # or nothing was interrupted


def save(run: Path, step: int, value: float, keep: int = 2) -> Path:
    tensors = {"model": {"w": torch.full((64,), value)}, "optimizer": {"0.step": torch.ones(3)}}
    return checkpoint.save(run, step, tensors, {"step": step, "value": value}, keep)


def value(path: Path | None) -> float:
    assert path is not None
    found = checkpoint.load(path)
    assert found.state["value"] == found.tensors["model"]["w"].unique().item()
    return float(found.state["value"])


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_good_checkpoint_of_the_same_step_is_there_until_the_new_one_is(
    memory: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    still(monkeypatch)
    start, run = memory / "start", memory / "run"
    start.mkdir()
    save(start, 2, 1.0)
    shutil.copytree(start, run)

    def work() -> None:
        save(run, 2, 2.0)

    points = deaths(work, run)
    values = []
    for at, how in [*points[:-1:every], points[-1]]:
        shutil.rmtree(run)
        shutil.copytree(start, run)
        dies(work, Disk(run, at, how))
        values.append(value(checkpoint.newest(run)[0]))
        save(run, 3, 3.0)
        assert {p.name for p in run.iterdir()} == {"latest", "step-000002", "step-000003"}
        assert value(run / "step-000002") == values[-1]
    assert set(values) == {1.0, 2.0} and values[-1] == 2.0


@pytest.fixture
def two(memory: Path, unbroken: Unbroken) -> Path:
    """A run folder with the checkpoints of steps 2 and 4."""
    shutil.copytree(unbroken.folders / "6-4", memory / "two")
    return memory / "two"


def files(path: Path) -> list[Path]:
    found = sorted(path.iterdir())
    assert len(found) == 5, found
    return found


def refused(run: Path, name: str) -> None:
    path, faults = checkpoint.newest(run)
    assert path is not None and path.name == "step-000002", "the damage was not noticed"
    (fault,) = faults
    assert fault.startswith("step-000004: ") and name in fault


def test_a_file_of_another_length_is_noticed_and_named(two: Path) -> None:
    draw = random.Random(0)
    for path in files(two / "step-000004"):
        data = path.read_bytes()
        size = len(data)
        for length in {0, 1, size // 2, size - 1, *(draw.randrange(size) for _ in range(20))}:
            path.write_bytes(data[:length])
            refused(two, path.name)
            path.write_bytes(data[:length] + bytes(size - length))  # the tail reads as zeros
            refused(two, path.name if path.name != "manifest.json" else "")
        path.write_bytes(data + b"\0")
        refused(two, path.name)
        path.write_bytes(data)
    assert not checkpoint.newest(two)[1]


def test_one_flipped_bit_is_noticed_and_named(two: Path) -> None:
    draw = random.Random(0)
    for path in files(two / "step-000004"):
        size = path.stat().st_size
        everywhere = path.name == "manifest.json"  # it has no digest of its own
        for place in range(size) if everywhere else draw.sample(range(size), 64):
            bit = draw.randrange(8)
            flip(path, place, bit)
            refused(two, "" if everywhere else path.name)
            flip(path, place, bit)
    assert not checkpoint.newest(two)[1]


@pytest.mark.parametrize("mixing", ["swapped", "duplicated", "deleted", "added"])
def test_files_of_another_step_are_noticed_and_named(two: Path, mixing: str) -> None:
    old, new = two / "step-000002", two / "step-000004"
    for path in files(new):
        data, other = path.read_bytes(), (old / path.name).read_bytes()
        assert data != other
        if mixing == "deleted":
            path.unlink()
        elif mixing == "added":
            (new / f"more-{path.name}").write_bytes(data)
        else:
            path.write_bytes(other)
        if mixing == "swapped":
            (old / path.name).write_bytes(data)
            assert checkpoint.newest(two)[0] is None
        else:
            refused(two, path.name)
        (new / f"more-{path.name}").unlink(missing_ok=True)
        path.write_bytes(data)
        (old / path.name).write_bytes(other)
    assert not checkpoint.newest(two)[1]


def test_a_checkpoint_under_the_name_of_another_step_is_noticed(two: Path) -> None:
    shutil.rmtree(two / "step-000004")
    shutil.copytree(two / "step-000002", two / "step-000004")
    refused(two, "manifest.json is of step 2")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"step": 4}', '{"step": 4, "files": []}', '{"step": 4, "files": {"a": 1}}'],
)
def test_a_manifest_that_says_something_else_is_refused(two: Path, text: str) -> None:
    (two / "step-000004" / "manifest.json").write_text(text)
    path, (fault,) = checkpoint.newest(two)
    assert path is not None and path.name == "step-000002" and fault


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_an_operation_that_fails_leaves_the_older_checkpoints(memory: Path, code: int) -> None:
    run = memory / "run"
    at, failed = 0, 0
    while failed == at:
        at += 1
        run.mkdir()
        save(run, 1, 1.0)
        save(run, 2, 2.0)
        before = content(run)
        with pytest.MonkeyPatch.context() as patch:
            Disk(run, at, "fail", code).install(patch.setattr)
            try:
                save(run, 3, 3.0)
            except OSError as error:
                failed += 1
                message = str(error)
                assert os.strerror(code) in message and f"{run}/step-000003" in message
                assert "make room" in message and report_error(error) == 1
                assert "Checkpoints are intact" in message
        path, faults = checkpoint.newest(run)
        assert value(path) in (2.0, 3.0) and good(run) >= 2 and not faults
        if value(path) == 2.0:
            now = content(run)
            assert now == before, f"operation {at}: {now.keys() ^ before.keys()}"
        save(run, 4, 4.0)
        assert {p.name for p in checkpoint.steps(run)} == {
            f"step-00000{int(value(path))}",
            "step-000004",
        }
        assert len(list(run.iterdir())) == 3  # no leftovers
        shutil.rmtree(run)
    assert failed > 20


@pytest.mark.parametrize("at", [2, 6])
def test_a_first_save_that_fails_promises_nothing(memory: Path, at: int) -> None:
    run = memory / "run"
    run.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        Disk(run, at, "fail", errno.ENOSPC).install(patch.setattr)
        with pytest.raises(OSError, match="Nothing was saved yet: make room") as raised:
            save(run, 3, 3.0)
    assert "intact" not in str(raised.value) and report_error(raised.value) == 1
    assert not checkpoint.steps(run)


def test_a_save_reads_only_what_it_has_written(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = memory / "run", []
    count = checkpoint.file_digest
    monkeypatch.setattr(checkpoint, "file_digest", lambda path: read.append(path) or count(path))
    for step in range(1, 6):
        save(run, step, float(step), keep=4)
        assert len(read) == 3  # two files of tensors, and the state
        read.clear()
    flip(run / "step-000003" / "model.safetensors", 200)
    os.utime(run / "step-000003" / "model.safetensors", ns=(0, 0))  # later than the clock's step
    save(run, 6, 6.0, keep=4)
    assert [path.parent.name for path in read if ".tmp-" not in f"{path}"] == ["step-000003"]
    kept = ["step-000002", "step-000003", "step-000004", "step-000005", "step-000006"]
    assert [path.name for path in checkpoint.steps(run)] == kept  # four of them are good
    checkpoint.newest(run)  # to resume from it, everything is read
    assert sum(path.parent.name == "step-000006" for path in read) == 3


def test_a_disk_that_is_really_full_ends_the_run_with_1(
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: Unbroken,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The kernel refuses to write past 1,000 bytes of a file, as a quota would."""
    still(monkeypatch)
    run = memory / "run"
    shutil.copytree(unbroken.folders / "6-4", run)
    before = content(run)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            for _ in fit(regression(), training(6), run):
                pass
        except Exception as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))  # or nothing could be said
            os._exit(report_error(error))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    message = capfd.readouterr().err
    assert "File too large" in message and f"{run}/step-000006" in message
    now = content(run)
    assert {k: v for k, v in now.items() if k.startswith("step-")} == {
        k: v for k, v in before.items() if k.startswith("step-")
    }
    assert not [name for name in now if "tmp" in name]
    for _ in fit(regression(), training(6), run):
        pass
    assert content(run) == content(unbroken.folders / "6-6")

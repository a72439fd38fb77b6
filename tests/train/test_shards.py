"""Sharded training: what one process trains, from a share of the weights in each of several."""

import errno
import json
import os
import shutil
import subprocess
import sys
import traceback
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

from tests.train.launch import FOREVER, ROOT, environment, start, wait, write_pictures
from tests.train.ranks import command_of, draws_of_one_process, language, sharded
from tests.train.toy import regression
from triptych import training as runs
from triptych.cli.main import run as command
from triptych.requests import Training, TrainRequest
from triptych.train import checkpoint, shard_files
from triptych.train.journal import rows
from triptych.train.loop import fit
from triptych.train.shard_files import load

WORDS = ["the", "red", "green", "blue", "circle", "square", "above", "left", "small", "grey"]
SYSTEMS = ("text-to-image", "muon", "clip", "siglip", "vlm", "language", "bfloat16")


def write_texts(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(" ".join(draw.choice(WORDS, 600)) + "\n")
    return folder


@pytest.mark.parametrize("option", ["shard", "recompute"])
def test_other_recipes_refuse_it_in_a_sentence(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert command(["train", "cvae", f"--{option}", "--run", str(run)]) == 3
    said = f"--{option} is for text-to-image, clip, siglip, vlm and language: leave it out"
    assert f"triptych: {said}" in capsys.readouterr().err
    assert not run.exists()


def kept_bytes(request: TrainRequest, run: Path) -> int:
    """The bytes that the steps of a training keep for their backward passes."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        for _ in runs.train(request, run):
            pass
    return kept


def test_computing_blocks_again_keeps_less_and_changes_no_bit(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    kept, weights = [], []
    for again in (False, True):
        run = tmp_path / str(again)
        kept.append(kept_bytes(language(texts, steps=2, recompute=again), run))
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert kept[1] < 0.7 * kept[0]


def test_what_one_process_saved_is_read_as_it_is(tmp_path: Path) -> None:
    for _ in fit(regression(), Training(steps=2, save_every=2, sample_every=0), tmp_path):
        pass
    path = checkpoint.steps(tmp_path)[-1]
    found, expected = load(path, {}), checkpoint.load(path)
    assert found.state == expected.state and found.tensors.keys() == expected.tensors.keys()
    for file, group in expected.tensors.items():
        assert all(tensor.equal(found.tensors[file][name]) for name, tensor in group.items())


def test_what_failed_in_the_library_s_thread_is_raised_here() -> None:
    done: Future[None] = Future()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    done.set_exception(CheckpointException("save", {1: (full, traceback.StackSummary())}))
    with pytest.raises(OSError, match="No space left") as raised:
        shard_files._wait(done)
    assert raised.value is full


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty captioned pictures, and ten texts."""
    folder = tmp_path_factory.mktemp("shards")
    write_pictures(folder / "pictures", WORDS[1:4])
    write_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def spread(folder: Path, request: pytest.FixtureRequest) -> Path:
    """What several processes left of every system."""
    size = request.param
    results = wait(start(["-m", "tests.train.ranks", "shard", str(folder)], folder, size))
    assert [code for code, *_ in results] == [0] * size, "\n".join(told for _, _, told in results)
    return folder / str(size)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_several_processes_train_what_one_does(folder: Path, spread: Path, name: str) -> None:
    """The first loss, of the same weights, to 1e-6; then rounding grows by Adam's division. In
    bfloat16 a sum over fewer rows is rounded elsewhere.
    """
    first, later = (2e-3, 2e-2) if name == "bfloat16" else (1e-6, 2e-4)
    alone = folder / "1" / name
    with draws_of_one_process(0, 1):
        for _ in runs.train(sharded(folder / "pictures", folder / "texts")[name], alone):
            pass
    expected, measured = (rows(run / name / "metrics.jsonl") for run in (folder / "1", spread))
    assert len(measured) == len(expected) > 2
    assert measured[0]["loss"] == pytest.approx(expected[0]["loss"], rel=first)
    for one, several in zip(expected, measured, strict=True):
        for term in one.keys() - {"seconds"}:
            if not isinstance(one[term], list):
                assert several[term] == pytest.approx(one[term], rel=later, abs=1e-5), term
    last = checkpoint.steps(alone)[-1].name
    whole, shared = (load(run / last, {}).tensors for run in (alone, spread / name))
    assert {file: sorted(group) for file, group in shared.items()} == {
        file: sorted(group) for file, group in whole.items()
    }
    exported, theirs = (load_file(run / "model.safetensors") for run in (spread / name, alone))
    assert exported.keys() == theirs.keys()
    for key, tensor in exported.items():
        assert tensor.shape == theirs[key].shape
        if key in shared["ema"]:
            assert tensor.equal(shared["ema"][key]), key


@pytest.mark.slow
def test_training_goes_on_while_a_checkpoint_is_written(spread: Path) -> None:
    """And what is written is the state of its own step."""
    for step in (2, 4, 6):
        at_once, delayed = (
            load(spread / run / f"step-{step:06d}", {}) for run in ("at once", "delayed")
        )
        assert at_once.tensors.keys() == delayed.tensors.keys() == {"model", "ema", "optimizer"}
        for file, group in at_once.tensors.items():
            for name, tensor in group.items():
                assert tensor.equal(delayed.tensors[file][name]), (step, name)


@pytest.fixture(scope="module")
def begun(folder: Path) -> Path:
    """Six steps by two processes, saved every three."""
    results = wait(
        start(["-m", "triptych", *command_of(folder / "texts", folder / "begun", 6)], folder)
    )
    assert [code for code, *_ in results] == [0, 0], results
    return folder / "begun"


def timeless(run: Path) -> list[dict[str, float]]:
    return [{**row, "seconds": 0} for row in rows(run / "metrics.jsonl")]


@pytest.mark.slow
def test_any_number_of_processes_continues(folder: Path, begun: Path) -> None:
    """Two saved; one, with and without the option, and four go on as one goes on alone."""
    journals = {}
    for name in ("whole", "1", "1 without", "4"):
        run = folder / f"continued by {name}"
        if name != "whole":
            shutil.copytree(begun, run)
        arguments = command_of(folder / "texts", run, 9)
        if name == "1 without":
            arguments.remove("--shard")
        size = 4 if name == "4" else 1
        results = wait(start(["-m", "triptych", *arguments], folder, size))
        assert {code for code, *_ in results} == {0}, results
        journals[name] = timeless(run)
    whole = journals.pop("whole")
    for journal in journals.values():
        assert [row["step"] for row in journal] == list(range(1, 10))
        for one, row in zip(whole, journal, strict=True):  # those that begun measured more at 6
            assert {term: row[term] for term in one} == pytest.approx(one, rel=2e-4)


@pytest.mark.slow
def test_a_cut_or_damaged_save_is_not_read(folder: Path, begun: Path) -> None:
    whole = folder / "cut"
    shutil.copytree(begun, whole)
    shutil.copytree(whole / "step-000006", whole / ".step-000009.tmp-shares")
    share = whole / "step-000006" / "shard-00002-model-00001-of-00001.safetensors"
    data = bytearray(share.read_bytes())
    data[-1] ^= 1
    share.write_bytes(data[:-1])
    assert "bytes instead of" in checkpoint.verify(share.parent)
    share.write_bytes(data)
    path, faults = checkpoint.newest(whole)
    assert path == whole / "step-000003"
    assert faults == [f"step-000006: {share.name} has changed since it was written"]
    assert command(command_of(folder / "texts", whole, 9)) == 0
    assert [row["step"] for row in rows(whole / "metrics.jsonl")] == list(range(1, 10))
    assert not list(whole.glob(".*"))


@pytest.mark.slow
def test_a_full_disk_ends_all_and_older_checkpoints_stay(folder: Path) -> None:
    results = wait(start(["-m", "tests.train.ranks", "fill_disk", str(folder)], folder))
    (first, _, told), (second, _, said) = results
    assert (first, second) == (1, 1), results
    assert "No space left on device" in told and "Checkpoints are intact" in told
    assert "Traceback" not in told + said
    assert [path.name for path in checkpoint.steps(folder / "full")] == ["step-000003"]


@pytest.mark.slow
def test_twenty_random_kills_leave_the_bits_of_an_undisturbed_run(folder: Path) -> None:
    dying = ["-m", "--", "tests.train.ranks", "die"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    killed = subprocess.run(
        [sys.executable, *torchrun, "--max-restarts", "25", *dying, str(folder)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=FOREVER, check=False,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stderr[-3000:]
    assert len(list(folder.glob("killed-*"))) == 20
    whole = ["-m", "triptych", *command_of(folder / "texts", folder / "undisturbed", 600)]
    assert [code for code, *_ in wait(start(whole, folder))] == [0, 0]
    assert timeless(folder / "killed") == timeless(folder / "undisturbed")
    last = [folder / run / "step-000600" for run in ("killed", "undisturbed")]
    ours, theirs = (load(path, {}).tensors for path in last)
    for file, group in theirs.items():
        for name, tensor in group.items():
            assert tensor.equal(ours[file][name]), (file, name)
    exported = [
        (folder / run / "model.safetensors").read_bytes() for run in ("killed", "undisturbed")
    ]
    assert exported[0] == exported[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_a_share_of_the_weights_needs_a_share_of_the_memory() -> None:
    """Two and four processes may need 1/2 and 1/4 of the state, and the blocks that they gather."""
    script = str(ROOT / "benchmarks" / "sharded_memory.py")
    done = subprocess.run(
        [sys.executable, script, "measure"], env=environment(),
        capture_output=True, text=True, timeout=FOREVER, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert share_of_memory(done.stdout, 2) < 0.65
    assert share_of_memory(done.stdout, 4) < 0.45


def share_of_memory(printed: str, size: int) -> float:
    """The most that one of several processes needed to start and train, by what one alone did."""
    lines = [json.loads(line) for line in printed.splitlines()[1:]]
    most = {
        count: max(max(x["start"], x["train"]) for x in lines if x["processes"] == count)
        for count in (1, size)
    }
    return most[size] / most[1]

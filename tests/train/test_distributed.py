"""Two processes train what one process trains, the first alone writes, and all end together."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from shlex import split

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist

from tests.train.launch import FOREVER, ROOT, environment, start, wait, write_pictures
from tests.train.ranks import requests
from triptych import training as runs
from triptych.requests import Training
from triptych.train import checkpoint
from triptych.train.distributed import SINGLE_PROCESS, World, begin_round, join_processes
from triptych.train.journal import rows
from triptych.train.shard_files import load

COLOURS = ("red", "green", "blue")
SYSTEMS = ("clip", "wgan")
FURTHER = ("clip-resnet", "siglip", "cvae", "classifier", "autoencoder")
SHARDED = ("clip",)


def train_by_two(folder: Path, names: tuple[str, ...]) -> Path:
    """What two processes left of these systems, and forty captioned pictures that they read."""
    write_pictures(folder / "pictures", [f"a {colour}" for colour in COLOURS])
    chosen = ["equal", str(folder), " ".join(names)]
    results = wait(start(["-m", "tests.train.ranks", *chosen], folder))
    assert [code for code, *_ in results] == [0, 0], "\n".join(told for _, _, told in results)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_by_two(tmp_path_factory.mktemp("ranks"), SYSTEMS)


@pytest.fixture(scope="module")
def folder_of_further(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_by_two(tmp_path_factory.mktemp("ranks"), FURTHER)


@pytest.mark.parametrize(
    ("name", "how"), [(n, "ranks") for n in SYSTEMS] + [(n, "shards") for n in SHARDED]
)
def test_two_processes_train_what_one_process_trains(folder: Path, name: str, how: str) -> None:
    require_one_training(folder, name, how)


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_so_do_they_of_other_systems(folder_of_further: Path, name: str) -> None:
    require_one_training(folder_of_further, name, "ranks")


def require_one_training(folder: Path, name: str, how: str) -> None:
    """Losses, norms, first moments (which are sums of gradients), running means: with one process's
    draws the rest is rounding. Duplicate captions and batches of like texts cross the ranks.
    """
    for _ in runs.train(requests(folder / "pictures")[name], folder / "one" / name):
        pass
    alone, spread = folder / "one" / name, folder / how / name
    for expected, row in zip(
        rows(alone / "metrics.jsonl"), rows(spread / "metrics.jsonl"), strict=True
    ):
        for term in expected.keys() - {"seconds", "gradient_norm_std"}:
            if not isinstance(expected[term], list):
                assert row[term] == pytest.approx(expected[term], rel=2e-4, abs=1e-5), term
    ours, theirs = (load(run / "step-000003", {}) for run in (spread, alone))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for file, tensors in theirs.tensors.items():
        moments = file.startswith("optimizer")
        chosen = [k for k in tensors if ("exp_avg" in k) == moments and "_sq" not in k]
        scale = max(float(tensors[k].abs().max()) for k in chosen)
        for k in chosen:
            if name == "classifier" and k.endswith(("bias", "running_mean")):
                continue  # a norm takes a bias away: its gradient is rounding, its step a whole one
            if k.endswith("k_proj.bias") and not moments:
                continue  # so does a softmax: it moves all scores of a query alike
            off = (ours.tensors[file][k].double() - tensors[k].double()).abs()
            wrong = off > 1e-4 * max(scale if moments else 1.0, 1e-6)
            # Adam makes a step of the rounding of a gradient that is nearly zero, which few are;
            # the gradients' own sums are compared without exception.
            few = 0 if moments else off.numel() // 1000
            assert wrong.sum() <= few and off.max() < 3e-3, (file, k, float(off.max()))


def test_only_the_first_process_writes_and_each_draws_its_own(folder: Path) -> None:
    first, second = json.loads((folder / "told.json").read_text())
    assert len(first["written"]) > 50
    assert all(".tmp-shares" in path for path in second["written"])  # its own, of sharded training
    assert len(second["written"]) == 2 * len(SHARDED)
    assert first["seed"] != second["seed"]


def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(folder: Path) -> None:
    """With draws of each process's own, which therefore are reproducible."""

    def digests(run: Path) -> dict[str, str]:
        chosen = [*run.glob("step-000006/*.safetensors"), run / "model.safetensors"]
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in chosen}

    assert len(digests(folder / "whole")) == 3 + 1 - 1
    assert digests(folder / "resumed") == digests(folder / "whole")
    journals = [rows(folder / run / "metrics.jsonl") for run in ("resumed", "whole")]
    timeless = [[{**row, "seconds": 0} for row in journal] for journal in journals]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in journals[0]] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_one_process_that_fails_ends_all(tmp_path: Path, how: str) -> None:
    """Without a launcher that would end them; the reason is said once, without a traceback."""
    processes = start(["-m", "tests.train.ranks", how, str(tmp_path)], ROOT)
    (first, _, told), (second, _, said) = wait(processes)
    assert first == 1
    assert "another process of this training has ended" in told
    assert second == (3 if how == "raises" else -signal.SIGKILL)
    assert said == ("triptych: picture 17 is a film\n" if how == "raises" else "")
    assert "Traceback" not in told
    # Python's own end, which the group's threads would abort now and then, is not gone through.
    assert not list(tmp_path.glob("torn-down-*"))


def test_ctrl_c_on_one_process_stops_all_after_the_same_step(folder: Path) -> None:
    first, second = json.loads((folder / "told.json").read_text())
    assert first["code"] == second["code"] == 130
    assert checkpoint.steps(folder / "stopped")[-1].name == "step-000003"


@pytest.mark.slow
def test_ctrl_c_on_one_process_ends_the_command_in_all(tmp_path: Path) -> None:
    arguments = split("train cvae --run run --batch-size 8 --log-every 1 --widths 8 8 16 --steps")
    processes = start(["-m", "triptych", *arguments, "100000", "--json"], tmp_path)
    out = processes[0].stdout
    assert out is not None
    assert json.loads(out.readline())["step"] == 1
    processes[1].send_signal(signal.SIGINT)
    (first, _, told), (second, printed, said) = wait(processes)
    assert (first, second, printed, said) == (130, 130, "", ""), told
    step = checkpoint.steps(tmp_path / "run")[-1].name
    assert f"stopped after step {int(step.split('-')[1])}; saved" in told


AT_THE_END = """
import os, sys
from triptych.cli.main import run
code = run(sys.argv[1:])
threads = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
sys.exit(code or any("gloo" in name for name in threads))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """One that does may abort the process where Python ends, after the work is done."""
    (tmp_path / "at_the_end.py").write_text(AT_THE_END)
    arguments = split("train cvae --run run --batch-size 8 --widths 8 8 16 --steps 2")
    results = wait(start(["at_the_end.py", *arguments], tmp_path))
    assert [(code, said) for code, _, said in results][1] == (0, "")
    assert results[0][0] == 0, results[0][2]


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    arguments = split("-m -- triptych train siglip --run run --steps 2 --batch-size 4 --width 16")
    small = split("--layers 1 --heads 2 --text-width 16 --text-layers 1 --text-heads 2 --json")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, *arguments, *small], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=FOREVER, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [2]
    assert done.stderr.count("by 2 processes") == 1
    assert load_file(tmp_path / "run" / "model.safetensors")


def test_what_cannot_be_spread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything waits for anything."""
    with join_processes(Training()) as world:
        assert world == SINGLE_PROCESS
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"):
        join_processes(Training()).__enter__()
    for name in ("LOCAL_RANK", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(
        ValueError,
        match="batch of 128 does not divide into 3 processes: take --batch-size 126 or 129",
    ):
        join_processes(Training(batch_size=128)).__enter__()
    assert not torch.distributed.is_initialized()


def test_a_restart_does_not_read_what_dead_processes_left() -> None:
    """torchrun keeps one store over its restarts: here of three processes, started twice, of which
    the third is late.
    """
    store, parts = dist.HashStore(), {}

    def join(rank: int, life: int) -> None:
        part = begin_round(store, World(rank, 3))
        parts[life, rank] = part
        part.set(f"address of {rank}", f"{life}")

    for life in range(2):
        threads = [threading.Thread(target=join, args=(rank, life)) for rank in range(3)]
        for thread in threads[:2]:
            thread.start()
        threads[0].join(0.2)
        assert (life, 0) not in parts  # it waits for the third, though one was here before
        threads[2].start()
        for thread in threads:
            thread.join(FOREVER)
    for rank in range(3):
        assert [parts[1, rank].get(f"address of {other}") for other in range(3)] == [b"1"] * 3
        assert parts[0, rank].get("address of 0") == b"0"

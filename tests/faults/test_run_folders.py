"""Run folders in use, of other requests, damaged, cut short, unwritable, or strangely named."""

import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.train.toy import regression
from triptych import training as runs
from triptych.cli.main import report_error
from triptych.cli.main import run as command
from triptych.data.order.batches import Batches
from triptych.requests import TrainCvae, Training, TrainWgan
from triptych.train import checkpoint
from triptych.train.journal import Journal, lock_run, rows
from triptych.train.loop import fit
from triptych.weights import skeleton

SHORT = Training(steps=4, save_every=2, log_every=2, ema_halflife=4)


def hold(run: Path, then: str = "sleep") -> tuple[int, int]:
    """A process that holds the lock of a folder; with `fork`, its child reads data for it."""
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock_run(run):
            reader = os.fork() if then == "fork" else 0
            if reader or then != "fork":
                os.write(writing, reader.to_bytes(4, "big"))
            time.sleep(3600)  # until it is killed
        os._exit(0)
    os.close(writing)
    return holder, int.from_bytes(os.read(reading, 4), "big")


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_second_trainer_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    holder, _ = hold(tmp_path)
    try:
        with pytest.raises(RuntimeError, match=rf"in use by process {holder}\b.*--run") as caught:
            next(runs.train(TrainCvae(), tmp_path))
        assert report_error(caught.value) == 1
        assert {p.name for p in tmp_path.iterdir()} == {"lock"}  # and touched nothing
    finally:
        end(holder)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    holder, _ = hold(tmp_path)
    end(holder)
    with lock_run(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    with lock_run(tmp_path):  # and one that was let go
        pass


def test_a_reader_that_outlives_its_trainer_does_not_hold_the_lock(tmp_path: Path) -> None:
    holder, reader = hold(tmp_path, "fork")
    try:
        end(holder)
        os.kill(reader, 0)  # it is there
        with lock_run(tmp_path):
            pass
    finally:
        os.kill(reader, signal.SIGKILL)


def test_two_trainers_in_one_process_are_two(tmp_path: Path) -> None:
    refused = pytest.raises(RuntimeError, match=f"process {os.getpid()}")
    with lock_run(tmp_path), refused, lock_run(tmp_path):
        pass


def test_a_folder_of_another_request_is_refused_field_by_field(tmp_path: Path) -> None:
    runs.adopt(tmp_path, TrainWgan())  # nothing was learned with it: it binds nobody
    runs.adopt(tmp_path, TrainCvae(Training(seed=1, steps=10), latent=3))
    (tmp_path / "step-000001").mkdir()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        runs.adopt(tmp_path, TrainCvae(Training(seed=2, steps=20, batch_size=7), latent=4))
    message = str(caught.value)
    assert re.search(r"training\.seed: 1 there, 2 requested", message)
    assert re.search(r"training\.batch_size: 128 there, 7 requested", message)
    assert re.search(r"latent: 3 there, 4 requested", message)
    assert "steps" not in message and "--resume" in message  # the number of steps may change
    assert report_error(caught.value) == 3
    with pytest.raises(ValueError, match="recipe: cvae there, wgan requested"):
        runs.adopt(tmp_path, TrainWgan())
    assert (tmp_path / "run.json").read_bytes() == before
    runs.adopt(tmp_path, TrainCvae(Training(seed=1, steps=20), latent=3))
    stored = runs.stored(tmp_path)
    assert stored is not None and stored.training.steps == 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\0",
        '{"recipe": "cvae"}',
        '{"recipe": "cvae", "request": {"latent": "many"}}',
        '{"recipe": "cvae", "request": {"latents": 3}}',
        '{"recipe": "nothing", "request": {}}',
        '{"recipe": "cvae", "request": {"training": {"steps": -1}}}',
        "[" * 100_000,
        '{"recipe": [], "request": {}}',
    ],
)
def test_a_damaged_run_json_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        runs.adopt(tmp_path, TrainCvae())
    assert report_error(caught.value) == 3
    assert (tmp_path / "run.json").read_text() == text


@pytest.mark.parametrize("text", ["[]", '{"recipe": "cvae", "request": {"latent": "many"}}'])
def test_what_is_wrong_with_run_json_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        runs.adopt(tmp_path, TrainCvae())


def test_checkpoints_without_run_json_are_nobodys(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 2, {"model": {"w": torch.ones(2)}}, {"step": 2}, keep=2)
    with pytest.raises(ValueError, match=r"checkpoints but no run\.json.*another --run"):
        runs.adopt(tmp_path, TrainCvae())
    assert not (tmp_path / "run.json").exists()


def test_a_journal_shortened_by_hand_is_refused_and_kept(tmp_path: Path) -> None:
    for _ in fit(regression(), SHORT, tmp_path):
        pass
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    before = path.read_bytes()
    longer = Training(steps=6, save_every=2, log_every=2, ema_halflife=4)
    with pytest.raises(ValueError, match=r"metrics\.jsonl has \d+ bytes, fewer than") as caught:
        next(fit(regression(), longer, tmp_path))
    assert report_error(caught.value) == 3
    assert path.read_bytes() == before


def test_a_journal_with_a_torn_row_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    for _ in fit(regression(), SHORT, tmp_path):
        pass
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    for _ in fit(
        regression(), Training(steps=6, save_every=2, log_every=2, ema_halflife=4), tmp_path
    ):
        pass
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [2, 4, 6]


def test_the_offset_after_a_cut_is_the_end_of_the_file(tmp_path: Path) -> None:
    """A save that follows a resume before any row is written must not remember what was cut off."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("kept\nof a step that was not saved\n")
    journal = Journal(path, 5)
    assert journal.sync() == 5 == path.stat().st_size
    journal.write({"a": 1})
    assert journal.sync() == path.stat().st_size
    journal.close()
    assert path.read_text() == 'kept\n{"a": 1}\n'


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    for _ in fit(regression(), SHORT, tmp_path):
        pass
    other = regression()
    other.model[3] = torch.nn.Linear(8, 2)
    with pytest.raises(ValueError, match="step-000004 is of another model"):
        next(fit(other, Training(steps=6, ema_halflife=4), tmp_path))
    with pytest.raises(ValueError, match=r"step-000004 holds .*ema.* this run needs"):
        next(fit(regression(), Training(steps=6), tmp_path))


@pytest.mark.parametrize("where", ["a file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written_ends_with_3(tmp_path: Path, where: str) -> None:
    run = tmp_path / "run"
    if where == "read-only":
        run.mkdir(mode=0o555)
    else:
        run.write_text("kept")
    if where == "below a file":
        run /= "deeper"
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:  # root may write anywhere
            os.chmod(tmp_path, 0o755)
            os.setuid(65534)
        code = 0
        try:
            next(runs.train(TrainCvae(), run))
        except OSError as error:
            code = report_error(error) if str(run) in str(error) else 99
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_journal_on_a_full_disk_is_named(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 0
        try:
            journal = Journal(tmp_path / "metrics.jsonl")
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            try:
                for step in range(99):
                    journal.write({"step": step})
            finally:
                journal.close()
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))  # or nothing could be said
            code = report_error(error) if f"{tmp_path}/metrics.jsonl" in str(error) else 99
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "a name with spaces",
        "Ünï çødé 模型 🎨",
        "n" * 255,
        "-dash",
        "step-000001",
        "[a-z]*?",
        "quo'te\"s\\and\nlines",
        ".hidden.tmp-1",
    ],
)
def test_folders_with_strange_names_are_like_others(tmp_path: Path, name: str) -> None:
    for _ in fit(regression(), SHORT, tmp_path / "plain"):
        pass
    strange = tmp_path / "strange" / name
    steps = fit(regression(), SHORT, strange)
    next(report for report in steps if report.step == 3)
    steps.close()
    with lock_run(strange):
        for _ in fit(regression(), SHORT, strange):
            pass
    plain, faults = checkpoint.newest(strange)
    assert plain is not None and plain.name == "step-000004" and not faults
    for file in ("model", "ema", "optimizer"):
        ours = (strange / "step-000004" / f"{file}.safetensors").read_bytes()
        assert ours == (tmp_path / "plain" / "step-000004" / f"{file}.safetensors").read_bytes()


def test_files_follow_the_users_umask(tmp_path: Path) -> None:
    """The tensors too: a model is trained by one user and served by another."""
    for _ in fit(regression(), SHORT, tmp_path):
        pass
    modes = {p.stat().st_mode & 0o777 for p in [*tmp_path.glob("*.*"), *tmp_path.glob("step-*/*")]}
    assert len(modes) == 1


ARGUMENTS = [
    "train", "cvae", "--data", "digits", "--steps", "20",
    "--batch-size", "16", "--log-every", "1", "--save-every", "8", "--network", "mlp",
    "--widths", "16", "--device", "cpu", "--ema-halflife", "5", "--run",
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SIGNALLED = """
import os, sys
from triptych.cli.main import main
from triptych.data.order.batches import Batches
number, steps, *sys.argv[1:] = sys.argv[1:]
read, count = Batches.__next__, 0
def counted(batches):
    global count
    count += 1
    if count == int(steps):
        os.kill(os.getpid(), int(number))
    return read(batches)
Batches.__next__ = counted
main()
"""


def interrupted(run: Path, number: int, nth: int) -> tuple[int, int]:
    """The command, sent a signal in one of its steps: its exit code, and where it stopped."""
    trainer = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(number), str(nth), *ARGUMENTS, str(run)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    stopped = re.search(r"stopped after step (\d+); saved", trainer.stderr)
    assert stopped is not None, trainer.stderr
    return trainer.returncode, int(stopped[1])


@pytest.mark.parametrize(
    "signals",
    [
        [(signal.SIGINT, 130, 3, 3)],
        pytest.param(
            [(signal.SIGINT, 130, 3, 3), (signal.SIGTERM, 143, 7, 10)], marks=pytest.mark.slow
        ),
    ],
)
def test_signals_finish_the_step_and_the_same_command_continues(tmp_path: Path, signals) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    run, whole = tmp_path / "run", tmp_path / "whole"
    for number, code, nth, at in signals:
        returned, stopped = interrupted(run, number, nth)
        assert returned == code and stopped == at
        path, faults = checkpoint.newest(run)
        assert path is not None and path.name == f"step-{stopped:06d}" and not faults
        steps = [row["step"] for row in rows(run / "metrics.jsonl")]
        assert steps == list(range(1, stopped + 1))
    for folder in (run, whole):
        assert command([*ARGUMENTS, str(folder)]) == 0
    for name in ("model", "ema", "optimizer"):
        file = f"step-000020/{name}.safetensors"
        assert (run / file).read_bytes() == (whole / file).read_bytes(), name
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder / "metrics.jsonl")]
        for folder in (run, whole)
    )
    assert ours == theirs


def test_a_signal_in_the_last_step_is_not_lost(tmp_path: Path, monkeypatch) -> None:
    """The run is finished, and a chain of trainings does not go on."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    read, calls = Batches.__next__, itertools.count(1)

    def signalled(batches):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return read(batches)

    monkeypatch.setattr(Batches, "__next__", signalled)
    words = ["train", "cvae", "--steps", "2", "--log-every", "1"]
    assert command([*words, "--run", f"{tmp_path / 'run'}"]) == 130
    assert runs.is_finished(tmp_path / "run")


def test_nothing_is_trained_that_would_not_load_again(monkeypatch) -> None:
    request = TrainCvae(training=Training(data="digits"), widths=(4, 4, 4))
    count = len(list(runs.build(request).exported.parameters()))
    monkeypatch.setattr(skeleton, "MOST_TENSORS", count)
    runs.build(request)
    monkeypatch.setattr(skeleton, "MOST_TENSORS", count - 1)
    with pytest.raises(ValueError, match=f"a model of {count} tensors, and at most {count - 1}"):
        runs.build(request)

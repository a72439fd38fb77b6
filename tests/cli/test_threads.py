"""Threads by the size of the work, or as asked for; what the docs promise stays to the bit."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from triptych.cli import main, threads
from triptych.cli.main import run
from triptych.vision.images import open_picture


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose torch takes two threads, with no choice in the environment."""
    before = torch.get_num_threads()
    monkeypatch.setenv(threads.THREADS, "")  # so that it is restored
    monkeypatch.delenv(threads.THREADS)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("parameters", "examples", "expected"), [(1000, 49_999, 1), (1000, 50_000, 2), (60, 1, 1)]
)
def test_small_work_takes_one_thread(two, parameters: int, examples: int, expected: int) -> None:
    threads.spare_threads(nn.Linear(parameters, 1, bias=False), examples)
    assert torch.get_num_threads() == expected


def test_a_choice_is_kept(two, monkeypatch) -> None:
    monkeypatch.setenv(threads.THREADS, "2")
    threads.spare_threads(nn.Linear(1, 1), 1)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("words", [["--threads", "3"], ["--threads=3"]])
def test_every_command_takes_threads(two, words: list[str], monkeypatch, capsys) -> None:
    seen = []
    monkeypatch.setattr(
        "triptych.cli.weights.list_weights", lambda _: seen.append(torch.get_num_threads()) or 0
    )
    assert run(["weights", *words, "list"]) == 0
    assert seen == [3] and os.environ[threads.THREADS] == "3"  # for processes that read pictures


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5", "", "99999"])
def test_numbers_of_threads_that_are_none(two, wrong: str, capsys) -> None:
    assert run(["weights", "list", f"--threads={wrong}"]) == 2
    assert "--threads takes a whole number of at least 1" in capsys.readouterr().err
    assert run(["weights", "list", "--threads"]) == 2


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_waiting_threads_spin_briefly_unless_told_otherwise(monkeypatch, capsys, chosen) -> None:
    monkeypatch.setattr(main.sys, "argv", ["triptych", "--version"])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    for name in threads.CHOICES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main.main()
    found = {name: os.environ[name] for name in threads.CHOICES if name in os.environ}
    assert found == (chosen or {"GOMP_SPINCOUNT": threads.SHORT})


def test_a_resumed_run_has_the_same_bits(two, tmp_path: Path, capsys) -> None:
    """The number of threads follows from the request, so that both parts have the same."""
    small = ["train", "cvae", "--batch-size", "8", "--widths", "8", "--latent", "2", "--device",
             "cpu", "--sample-every", "0", "--save-every", "2"]  # fmt: skip
    assert run([*small, "--steps", "4", "--run", str(tmp_path / "whole")]) == 0
    assert torch.get_num_threads() == 1
    for steps in ("2", "4"):
        torch.set_num_threads(2)
        assert run([*small, "--steps", steps, "--run", str(tmp_path / "parts")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    pictures = []
    for n in ("1", "3"):
        torch.set_num_threads(2)
        out = tmp_path / n
        words = ["generate", "--model", str(tmp_path / "whole"), "--label", "1", "--deterministic"]
        assert run([*words, "--n", n, "--seed", "4", "--out", str(out)]) == 0
        pictures.append(open_picture(out / "0000-4.png"))
    assert (pictures[0] == pictures[1]).all()

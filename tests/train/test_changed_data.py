"""Pictures that change under a training: a clear note, or the same bits."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from tests.train.test_loop import same
from triptych.cli.main import run as command
from triptych.requests import Towers, TrainClip, TrainCvae, Training, TrainLanguage
from triptych.systems.gemma.texts import read_texts
from triptych.train.journal import rows
from triptych.train.loop import Report
from triptych.training import train
from triptych.vision.images import save_picture

BETWEEN = "have changed since step 4"
MEANWHILE = "data have changed or gone while this ran"


def write_pictures(root: Path, count: int = 40) -> Path:
    """Pictures of two classes, none like another."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(path, draw.integers(0, 256, (8, 8, 1), np.uint8))
    return root


def request_of(data: Path, steps: int = 8) -> TrainCvae:
    training = Training(
        data=str(data), steps=steps, batch_size=4, save_every=4, log_every=4, sample_every=0,
        device="cpu",
    )  # fmt: skip
    return TrainCvae(training, widths=(8,), latent=2)


def delete(data: Path) -> None:
    (data / "a/00.png").unlink()


def replace(data: Path) -> None:
    save_picture(data / "a/00.png", np.zeros((8, 8, 1), np.uint8))


def truncate(data: Path) -> None:
    os.truncate(data / "a/00.png", 40)


def add(data: Path) -> None:
    save_picture(data / "a/new.png", np.zeros((8, 8, 1), np.uint8))


CHANGES = (delete, replace, truncate, add)


def notes(reports: list[Report]) -> list[tuple[int, str]]:
    return [(report.step, report.note) for report in reports if report.note]


@pytest.mark.parametrize("change", CHANGES)
def test_between_two_lives_it_is_said(tmp_path: Path, change) -> None:
    data, run = write_pictures(tmp_path / "data"), tmp_path / "run"
    first = list(train(request_of(data, steps=4), run))
    change(data)
    second = list(train(request_of(data), run))
    assert notes(first) == []
    ((step, note),) = notes(second)
    assert step == 5 and BETWEEN in note
    third = list(train(request_of(data, steps=9), run))  # said once
    assert notes(third) == [] and [row["step"] for row in rows(run / "metrics.jsonl")][-1] == 9


@pytest.mark.parametrize("change", CHANGES)
def test_meanwhile_it_is_said_or_the_bits_are_the_same(tmp_path: Path, change) -> None:
    data, run = write_pictures(tmp_path / "data"), tmp_path / "run"
    for _ in train(request_of(data), tmp_path / "whole"):
        pass
    reports = []
    for report in train(request_of(data), run):
        reports.append(report)
        if report.step == 2:
            change(data)
    if change is add:  # a picture that was not there at the start is not read
        assert notes(reports) == []
        same(run, tmp_path / "whole")
    else:
        ((step, note),) = notes(reports)
        assert step == 8 and MEANWHILE in note


def test_nothing_is_said_of_data_that_stay(tmp_path: Path, capsys) -> None:
    """The command prints what there is to say."""
    data = write_pictures(tmp_path / "data")
    words = [
        "train",
        "cvae",
        "--widths",
        "8",
        "--latent",
        "2",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    words += ["--sample-every", "0", "--run", str(tmp_path / "run")]
    assert command([*words, "--data", str(data), "--steps", "2"]) == 0
    assert command([*words, "--data", str(data), "--steps", "3"]) == 0
    assert "note:" not in capsys.readouterr().err
    truncate(data)
    assert command([*words, "--data", str(data), "--steps", "40"]) == 0
    said = capsys.readouterr().err
    assert "note: the data have changed since step 3" in said
    assert f"1 picture could not be read: {tmp_path}/run/skipped.jsonl says why" in said


def test_texts_with_another_vocabulary_are_refused(tmp_path: Path) -> None:
    """What was learned of words would be lost; with the old texts the same command continues."""
    data, run = write_pictures(tmp_path / "data"), tmp_path / "run"
    for path in data.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"picture {path.stem} of a house")
    towers = Towers(
        patch=4, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2,
        length=16, vocabulary=520,
    )  # fmt: skip
    training = request_of(data, steps=2).training
    request = TrainClip(training, towers, dim=8)
    longer = dataclasses.replace(request, training=dataclasses.replace(training, steps=3))
    for _ in train(request, run):
        pass
    old, before = (
        {p: p.read_text() for p in data.rglob("*.txt")},
        (run / "tokenizer.json").read_bytes(),
    )
    for path, text in old.items():
        path.write_text(text.replace("house", "xylophone"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the texts of the data have changed"):
        next(train(longer, run))
    assert (run / "tokenizer.json").read_bytes() == before
    for path, text in old.items():
        path.write_text(text)
    assert [report.step for report in train(longer, run)] == [3]


def test_texts_that_change_between_two_lives(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"the cat is {n}\n" * 9)
    learned = read_texts(str(folder)).train
    one, two = (next(p for p in folder.iterdir() if p.read_text() == text) for text in learned[:2])
    training = Training(data=str(folder), steps=1, batch_size=2, sample_every=0, device="cpu")
    sizes = {"width": 16, "layers": 1, "heads": 2, "head_width": 8, "hidden": 16, "length": 8}
    request = TrainLanguage(training, vocabulary=330, **sizes)
    for steps, said in ((1, []), (2, []), (3, [3])):
        longer = dataclasses.replace(request, training=dataclasses.replace(training, steps=steps))
        told = notes(list(train(longer, tmp_path / "run")))
        assert [step for step, note in told if "changed" in note] == said
        if steps == 2:
            one.write_text(learned[1])  # the same words in another order
            two.write_text(learned[0])

"""Clocks that stand still, run backwards or are centuries off, and locales with other letters and
commas: the same bits, and no error of a library.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.test_kills import ROOT
from tests.systems.clip.tiny_clip import saved, tiny_clip
from tests.train.test_changed_data import notes, request_of, write_pictures
from tests.train.test_loop import same
from triptych.cli import main as cli
from triptych.cli.main import run as command
from triptych.config import read_json, write_json
from triptych.data.sources import open_source
from triptych.systems.class_to_image.report import write_arrays
from triptych.train import checkpoint
from triptych.training import train

TIMES = (-(2**31), 0, 2**33)  # 1901, 1970 and 2242


def test_a_clock_that_runs_backwards_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    data = write_pictures(tmp_path / "data")
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        os.utime(path, (TIMES[number % 3],) * 2)
    assert notes(list(train(request_of(data), tmp_path / "whole"))) == []
    clock = iter(range(2**33, -(2**33), -(2**28)))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for last in (4, 8):
        steps = train(request_of(data), tmp_path / "run")
        reports = [next(steps)]
        while reports[-1].step < last:
            reports.append(next(steps))
        steps.close()
        assert notes(reports) == []
        for folder, when in zip(checkpoint.steps(tmp_path / "run"), TIMES[::-1], strict=False):
            for path in (folder, *folder.iterdir()):
                os.utime(path, (when, when))
    newest, faults = checkpoint.newest(tmp_path / "run")
    assert newest is not None and newest.name == "step-000008" and not faults
    same(tmp_path / "run", tmp_path / "whole")


def test_an_index_knows_pictures_of_other_centuries(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, clip = write_pictures(tmp_path / "data", 6), saved(tiny_clip(), tmp_path / "clip")
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        os.utime(path, (TIMES[number % 3],) * 2)
    words = ["search", str(data), "two cats", "--model", str(clip)]
    for new in (6, 0):
        assert command(words) == 0
        assert ("6 of them new" in capsys.readouterr().err) == bool(new)


def test_arrays_are_written_before_1980(tmp_path: Path, monkeypatch) -> None:
    """Zip archives have no such time, and numpy asks the clock."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    x, y = np.arange(32, dtype=np.uint8).reshape(2, 4, 4), np.arange(2)
    write_arrays(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert np.array_equal(open_source(str(tmp_path / "a.npz")).read([0, 1])["image"][..., 0], x)


def test_letters_that_the_terminal_does_not_have(monkeypatch) -> None:
    """They are escaped; the command goes on."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", "strict"))
    monkeypatch.setattr(cli, "run", lambda arguments: print("ein L\u00f6we") or 0)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and written.getvalue() == b"ein L\\xf6we\n"


def test_names_of_files_that_are_no_utf_8_are_recorded(tmp_path: Path) -> None:
    """As Python gives them: a run with such data must continue."""
    for name in ("L\u00f6we", os.fsdecode(b"L\xf6we")):
        write_json(tmp_path / "a.json", {"data": name})
        assert read_json(tmp_path / "a.json") == {"data": name}
    write_json(tmp_path / "a.json", {"data": "L\u00f6we"})
    assert "L\u00f6we" in (tmp_path / "a.json").read_text("utf-8")  # as before


TRAINED = """
import locale, sys
locale.setlocale(locale.LC_ALL, "")
from triptych.cli.main import run
print(locale.str(1.5), file=sys.stderr)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_locales_give_the_same_bits(tmp_path: Path) -> None:
    """Turkish letters, decimal commas, and a locale without any but ASCII."""
    if not shutil.which("localedef"):
        pytest.skip("no localedef")
    for name in ("tr_TR", "de_DE"):
        made = ["localedef", "-c", "-i", name, "-f", "UTF-8", str(tmp_path / f"{name}.UTF-8")]
        subprocess.run(made, check=False, capture_output=True)
        assert (tmp_path / f"{name}.UTF-8").is_dir()
    data = tmp_path / "I \u0131 \u00fc"
    data.mkdir()
    (data / "t.txt").write_text("I\u015f\u0131k 1,5 und 2.5 \u00dcber ISTANBUL\n" * 40, "utf-8")
    words = ["train", "language", "--data", str(data), "--steps", "2", "--width", "16"]
    words += ["--layers", "1", "--heads", "2", "--head-width", "8", "--hidden", "16", "--length"]
    words += ["8", "--vocabulary", "330", "--batch-size", "2", "--device", "cpu"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    digests = {}
    for name, extra, comma in (
        ("C", plain, "1.5"), ("tr_TR.UTF-8", {}, "1,5"), ("de_DE.UTF-8", {}, "1,5"),
    ):  # fmt: skip
        environment = os.environ | {"LOCPATH": str(tmp_path), "LC_ALL": name} | extra
        environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", TRAINED, *words, "--run", str(tmp_path / f"run-{name}")],
            env=environment, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert comma in done.stderr.decode("utf-8", "replace").splitlines()[0]
        written = (tmp_path / f"run-{name}/model.safetensors").read_bytes()
        digests[name] = hashlib.sha256(written).hexdigest()
    assert len(set(digests.values())) == 1, digests

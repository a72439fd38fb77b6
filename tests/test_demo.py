"""The commands of `make demo`: which they are with and without a bundled model."""

import shlex
import subprocess
from pathlib import Path

import pytest

from triptych.cli.main import run
from triptych.weights.bundled_models import bundled_names

ROOT = Path(__file__).parents[1]


def demo(bundled: Path) -> list[list[str]]:
    """The words of the commands of triptych that it runs, without running them."""
    done = subprocess.run(
        ["make", "--dry-run", "demo", f"BUNDLED={bundled}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    return [words[1:] for words in lines if words and words[0].endswith("/triptych")]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ((), []),
        (("digits-cvae",), ["--model", "digits-cvae"]),
        (("digits-cvae", "emoji"), ["red apple", "--n", "4"]),
    ],
)
def test_it_draws_with_the_best_bundled_model_and_trains(tmp_path: Path, names, first) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").touch()
    *drawn, train, last = demo(tmp_path)
    shown = [[*first, "--seed", "0", "--out", "runs/first-pictures"]] if first else []
    assert [words[1:] for words in drawn] == shown
    assert train == ["train", "cvae", "--data", "digits", "--run", "runs/demo"]
    assert last[:3] == ["generate", "--model", "runs/demo"]


@pytest.mark.slow  # opens scikit-learn, trains and draws: seconds
def test_it_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    """As it is in this checkout, with a training of two steps; a second time it continues."""
    monkeypatch.chdir(tmp_path)
    *_, train, last = lines = demo(ROOT / "src/triptych/weights/bundled")
    small = {"train": ["--steps", "2", "--device", "cpu"], "generate": ["--n", "2"]}
    for words in lines:
        assert run([*words, *small[words[0]]]) == 0, capsys.readouterr().err
    assert "--n" in last and len(list(Path("runs/demo/pictures").glob("*.png"))) == 3
    assert run([*train, "--steps", "4", "--device", "cpu"]) == 0
    assert "steps 3 to 4" in capsys.readouterr().err
    assert Path("runs/first-pictures").is_dir() == any(
        name in bundled_names() for name in ("emoji", "digits-cvae")
    )

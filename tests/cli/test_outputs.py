"""Where commands write: nothing is overwritten, and bad places are refused before the work."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.systems.stable_diffusion.tiny_stable_diffusion import saved
from triptych import training
from triptych.cli.main import run
from triptych.cli.places import free_path, next_number, require_file, require_folder
from triptych.requests import TrainCvae, Training
from triptych.train.journal import lock_run
from triptych.vision.images import save_picture

TINY = ["train", "cvae", "--steps", "2", "--batch-size", "8", "--widths", "4", "--latent", "2",
        "--sample-every", "0", "--log-every", "1", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("outputs") / "cvae"
    assert run([*TINY, "--run", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "runs" / "tiny")
    return "runs/tiny"


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_numbers_go_on_in_a_folder_that_has_pictures(prompts, classes, capsys) -> None:
    words = ["generate", "a cat", "--model", prompts, "--steps", "1", "--seed", "5", "--out", "ow"]
    assert run(words) == run(words) == 0
    assert names("ow") == ["0000-5.png", "0001-5.png"]
    first = Path("ow/0000-5.png").read_bytes()
    more = ["generate", "--model", classes, "--label", "3", "--n", "2", "--seed", "5"]
    capsys.readouterr()
    for grid in ("grid.png", "grid-2.png"):
        assert run([*more, "--out", "ow", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert Path(told["grid"]).name == grid
    assert names("ow") == [
        "0000-5.png", "0001-5.png", "0002-5.png", "0003-6.png", "0004-5.png", "0005-6.png",
        "grid-2.png", "grid.png",
    ]  # fmt: skip
    assert [Path(one["file"]).name for one in told["pictures"]] == ["0004-5.png", "0005-6.png"]
    assert Path("ow/0000-5.png").read_bytes() == first


def test_a_grid_that_is_there_is_kept(prompts, capsys) -> None:
    words = ["grid", "a cat", "--x", "steps=1", "--model", prompts, "--seed", "5"]
    assert run(words) == run(words) == 0
    assert {"grid.png", "grid-2.png"} <= set(names("."))
    assert "1 picture in grid-2.png" in capsys.readouterr().err


def test_names_that_do_not_count(tmp_path: Path) -> None:
    assert next_number(tmp_path / "new") == 0
    for name in ("0007-3.png", "0012-9-8.webp", "99-1.png", "2024-notes.txt", "grid.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 13
    assert free_path(tmp_path / "grid.png").name == "grid-2.png"
    assert free_path(tmp_path / "new.png").name == "new.png"


def test_places_for_results(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    require_folder("--out", tmp_path)
    require_folder("--out", tmp_path / "new" / "newer")
    require_file("--out", tmp_path / "new" / "grid.PNG", (".png",))
    for out, says in (("file", "is a file"), ("file/below", "file is a file")):
        with pytest.raises(Exception, match=f"^--out .*{says}; give a folder"):
            require_folder("--out", tmp_path / out)
    with pytest.raises(Exception, match=r"should end in \.png or \.webp"):
        require_file("--out", tmp_path / "a.gif", (".png", ".webp"))
    with pytest.raises(Exception, match="is a folder; give the name of a file"):
        require_file("--out", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        require_folder("--out", tmp_path / "new")


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a cat", "--model", "gone", "--out"],
        ["generate", "--model", "gone", "--label", "a", "--out"],
        ["grid", "a cat", "--x", "steps=1", "--model", "gone", "--out", "{}/grid.png"],
        ["classify", "p.png", "--labels", "auto", "--model", "gone", "--out"],
        ["classify", "p.png", "--labels", "a", "--model", "gone", "--matrix", "{}/m.png"],
        ["detect", "p.png", "--labels", "a", "--model", "gone", "--out"],
        ["probe", "gone", "digits", "--out"],
        ["embed", "--text", "a", "--model", "gone", "--out", "{}/v.npy"],
        ["search", ".", "a", "--model", "gone", "--sheet", "{}/sheet.png"],
        ["data", "check", "digits", "--report", "{}/report"],
        ["weights", "convert", "w.safetensors", "{}/w.safetensors"],
        ["train", "cvae", "--run"],
    ],
)
@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_where_a_folder_should_be_is_refused_first(
    words, place, tmp_path: Path, monkeypatch, capsys
) -> None:
    """With exit code 2, and before the missing model is noticed, which would be 3."""
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("precious")
    save_picture(Path("p.png"), np.zeros((8, 8, 3), np.uint8))
    np.savez("w.npz", a=np.zeros(1))
    words = [w.replace("w.safetensors", "w.npz") if w[0] != "{" else w for w in words]
    end = words[-1] if "{}" in words[-1] else ""
    words = [*words[:-1], end.format(place)] if end else [*words, place]
    assert run(words) == 2
    error = capsys.readouterr().err
    assert "taken" in error and "is a file; give a folder" in error
    assert Path("taken").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["grid", "a", "--x", "stepz=1"], "Did you mean 'steps'"),
        (["grid", "a", "--x", "steps=many"], "steps is a number"),
        (["grid", "a", "--x", "steps=-3"], "steps"),
        (["grid", "a", "--x", "noise_source=dice"], "must be one of"),
        (["grid", "a"], "there is no sweep"),
        (["grid", "a", "--x", "steps=1", "--y", "steps=2"], "another option"),
        (["grid", "a", "--x", "steps=1", "--out", "grid.gif"], "should end in .png"),
        (["classify", "p.png", "--labels", "a", "--top", "-1"], "--top is 0"),
        (["classify", "p.png", "--labels", "a", "--matrix", "m.jpg"], "should end in .png"),
        (["classify", "p.png", "--labels", "a", "--shots", "2"], "--labels auto"),
        (["embed", "--text", "a", "--out", "v.txt"], "should end in .npy"),
        (["search", ".", "a", "--sheet", "s.gif"], "should end in"),
        (["generate", "--label", "a", "--model", "gone", "--rerank", "a"], "go together"),
        (["weights", "convert", "p.npz", "x.pt"], "should end in .safetensors"),
        (["detect", "p.png", "q.png", "--labels", "a", "--format", "voc"], "give --out"),
    ],
)
def test_usage_mistakes_exit_with_two(words, says, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("p.npz", a=np.zeros(1))
    assert run(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1"])
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["train", "cvae"], "--learning-rate"),
        (["train", "wgan"], "--gp-weight"),
        (["train", "clip"], "--weight-decay"),
        (["train", "text-to-image"], "--max-norm"),
        (["train", "autoencoder"], "--ema-halflife"),
        (["generate", "a", "--model", "gone"], "--guidance"),
        (["detect", "p.png", "--labels", "a"], "--threshold"),
        (["detect", "p.png", "--labels", "a"], "--scales"),
        (["search", ".", "a"], "--duplicates"),
    ],
)
def test_numbers_that_are_none_exit_with_two(
    command, flag, number, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*command, f"{flag}={number}"]) == 2
    error = capsys.readouterr().err
    assert flag.strip("-").replace("-", "_") in error.replace("-", "_").lower()
    assert number == "-1" or f"takes a finite number, not {number!r}" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_python_refuses_them_too(number: float) -> None:
    with pytest.raises(ValueError, match="learning_rate must be"):
        TrainCvae(learning_rate=number)
    with pytest.raises(ValueError, match="ema_halflife must be"):
        Training(ema_halflife=number)


# Training that fails before its first step


def test_a_failed_train_leaves_no_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "cvae", "--data", "gone"]) == 3
    assert run(["train", "cvae", "--data", "gone", "--run", "deep/er/run"]) == 3
    assert list(tmp_path.iterdir()) == []
    Path("mine").mkdir()
    assert run(["train", "cvae", "--data", "gone", "--run", "mine"]) == 3
    assert Path("mine").is_dir()  # it was there before
    with pytest.raises(ValueError, match="gone"):
        list(training.train(TrainCvae(Training(data="gone")), Path("other")))
    assert names(".") == ["mine"]


def test_a_run_that_has_begun_is_kept(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    with pytest.raises(FloatingPointError), lock_run(run_folder):
        (run_folder / "metrics.jsonl").write_text("{}\n")
        raise FloatingPointError
    assert run_folder.is_dir()
    with pytest.raises(FloatingPointError), lock_run(tmp_path / "new"):
        (tmp_path / "new" / "metrics.jsonl").touch()
        raise FloatingPointError
    assert not (tmp_path / "new").exists()

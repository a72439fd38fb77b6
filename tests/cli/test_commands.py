"""The command line as a newcomer uses it: train, generate, evaluate; and what nonsense gets."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych import runtime
from triptych import training as runs
from triptych.cli.main import main, run
from triptych.loading import load
from triptych.requests import TrainCvae, TrainTextToImage, TrainWgan
from triptych.systems.cvae import likelihood
from triptych.systems.stable_diffusion import draw_prompts as prompts
from triptych.vision.images import read_request, save_picture

SMALL = ["--steps", "20", "--log-every", "10", "--widths", "16", "--latent", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cvae"
    assert run(["train", "cvae", "--run", str(folder), "--device", "cpu", *SMALL]) == 0
    return folder


def test_a_run_folder_has_what_the_docs_say(trained: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "model.safetensors", "config.json", "latest"):
        assert (trained / name).is_file()
    assert (trained / "samples" / "step-000020.png").is_file()
    assert (trained / "step-000020" / "manifest.json").is_file()


def test_the_same_command_again_says_that_it_is_finished(trained: Path, capsys) -> None:
    assert run(["train", "cvae", "--run", str(trained), "--device", "cpu", *SMALL]) == 0
    assert "finished: 20 steps" in capsys.readouterr().err


def test_other_settings_are_refused_by_name(trained: Path, capsys) -> None:
    assert run(["train", "cvae", "--run", str(trained), *SMALL, "--beta", "4"]) == 3
    error = capsys.readouterr().err
    assert "beta: 1.0 there, 4.0 requested" in error and "--resume" in error


def test_resume_trains_on_with_the_settings_that_are_there(trained: Path, capsys) -> None:
    assert run(["train", "--resume", "--run", str(trained), "--steps", "25"]) == 0
    assert "steps 21 to 25" in capsys.readouterr().err


def test_json_is_all_that_stdout_gets(tmp_path: Path, capsys) -> None:
    assert run(["train", "cvae", "--run", str(tmp_path / "run"), "--json", *SMALL]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == [10, 20]


def test_generate_writes_pictures_that_carry_their_request(trained: Path, tmp_path: Path, capsys):
    out = tmp_path / "pictures"
    words = ["generate", "--model", str(trained), "--label", "7", "--n", "3", "--seed", "5"]
    assert run([*words, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    files = sorted(p.name for p in out.iterdir())
    assert files == ["0000-5.png", "0001-6.png", "0002-7.png", "grid.png"]
    assert [picture["seed"] for picture in said["pictures"]] == [5, 6, 7]
    request = read_request(out / "0001-6.png")
    assert request is not None
    assert request["request"]["label"] == "7" and request["request"]["seed"] == 6
    assert str(tmp_path) not in json.dumps(request)


@pytest.mark.slow
def test_text_to_image_is_evaluated_where_bfloat16_is_fast(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """Figures are of float32, whatever would be read without being asked, and of the sampler that
    was.
    """
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda: True)
    folder = tmp_path / "drawn"
    small = ["--widths", "16", "--transformers", "1", "--groups", "8", "--head-width", "16",
             "--text-width", "16", "--steps", "2", "--batch-size", "2", "--precision", "float32",
             "--sampling-steps", "2", "--sample-every", "0", "--evaluate-every", "0"]  # fmt: skip
    assert run(["train", "text-to-image", "--preset", "tiny", *small, "--run", str(folder)]) == 0
    assert load(str(folder)).model.unet.conv_in.weight.dtype == torch.bfloat16
    assert run(["evaluate", str(folder), "--prompts", "2"]) == 0

    calls = []
    draw = prompts.sample
    monkeypatch.setattr(prompts, "sample", lambda *a, **k: calls.append(k) or draw(*a, **k))
    words = ["evaluate", str(folder), "--prompts", "2", "--steps", "3"]
    assert run([*words, "--sampler", "DPM++ 2M SDE Karras"]) == 0
    assert {(k["sampler"], k["steps"], k["spacing"]) for k in calls} == {
        ("dpmpp_2m_sde", 3, "karras")
    }
    assert run([*words, "--sampler", "dpm_adaptive"]) == 3
    assert "one picture at a time" in capsys.readouterr().err


def test_an_unknown_sampler_is_refused_before_the_model_is_read(tmp_path: Path, capsys) -> None:
    runs.adopt(tmp_path, TrainTextToImage())
    assert run(["evaluate", str(tmp_path), "--sampler", "dpmpp_2n"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("request_", "flags", "recipe"),
    [
        (TrainCvae(), ["--prompts", "3"], "cvae"),
        (TrainTextToImage(), ["--no-score"], "text-to-image"),
        (TrainTextToImage(), ["--samples-per-class", "3"], "text-to-image"),
        (TrainWgan(), ["--likelihood-samples", "3"], "wgan"),
    ],
)
def test_evaluate_refuses_options_of_another_system(
    tmp_path: Path, capsys, request_, flags, recipe
) -> None:
    """They are not ignored; options of the run's own system get as far as the missing model."""
    runs.adopt(tmp_path, request_)
    assert run(["evaluate", str(tmp_path), *flags]) == 2
    assert f"cannot be used: this is a {recipe} run" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path), "--curves"]) == 3
    assert "train until its first checkpoint" in capsys.readouterr().err


def test_a_run_without_a_model_is_told_before_its_options(tmp_path: Path, capsys) -> None:
    """Whose options they are cannot be known yet."""
    (tmp_path / "decoder").mkdir()
    for folder in (tmp_path, tmp_path / "decoder"):
        (folder / "run.json").write_text("{}")
    words = ["generate", "--what", "variations", "--image", "x.png", "--model", str(tmp_path)]
    assert run(words) == 3
    assert "has no config.json yet, only the parts decoder" in capsys.readouterr().err


def test_a_seed_that_was_drawn_is_said(trained: Path, tmp_path: Path, capsys) -> None:
    assert run(["generate", "--model", str(trained), "--n", "1", "--out", str(tmp_path)]) == 0
    (picture,) = tmp_path.glob("0000-*.png")
    assert picture.stem.split("-")[1] in capsys.readouterr().err


def test_evaluate_writes_numbers_pages_and_plots(trained: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(likelihood, "leak_probe", partial(likelihood.leak_probe, steps=20))
    words = ["evaluate", str(trained), "--samples-per-class", "20", "--judge-steps", "20"]
    assert run([*words, "--no-score", "--likelihood-pictures", "20", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["vae"]["nll"] > 0
    assert said["classes"]["samples"] == 200
    names = {p.name for p in (trained / "evaluation").iterdir()}
    assert {"vae.json", "report.json", "report.md", "curves.png", "shared-z.png"} <= names


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "cvea"], 2, "Did you mean 'cvae'"),
        (["train", "cvae", "--preset", "minst"], 2, "Did you mean 'mnist'"),
        (["train", "cvae", "--data", "digitz"], 3, "Did you mean 'digits'"),
        (["train", "--resume"], 2, "--run"),
        (["generate", "--model", "nowhere"], 3, "no model 'nowhere'"),
        (["evaluate", "nowhere"], 3, "no run folder"),
    ],
)
def test_nonsense_gets_a_sentence_and_a_code(tmp_path, monkeypatch, capsys, words, code, hint):
    monkeypatch.chdir(tmp_path)
    assert run(words) == code
    error = capsys.readouterr().err
    assert hint in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--label", "eleven"], "There are: 0, 1, 2"),
        (["--attributes", "red"], "conditioned on label"),
        (["--vector", "1.0"], "conditioned on label"),
        (["--image", "cat.png"], "conditioned on label"),
    ],
)
def test_a_condition_that_the_model_cannot_use_is_an_error(trained, tmp_path, capsys, flags, hint):
    assert run(["generate", "--model", str(trained), "--out", str(tmp_path), *flags]) == 3
    assert hint in capsys.readouterr().err


def test_generate_completes_a_picture(tmp_path: Path, capsys) -> None:
    folder, out, picture = tmp_path / "quadrants", tmp_path / "out", tmp_path / "seven.png"
    words = ["train", "cvae", "--run", str(folder), *SMALL, "--condition", "quadrants"]
    assert run([*words, "--network", "mlp", "--quadrants", "3"]) == 0
    save_picture(picture, np.full((20, 20, 1), 255, np.uint8))
    words = ["generate", "--model", str(folder), "--out", str(out), "--n", "2", "--seed", "1"]
    assert run([*words, "--image", str(picture)]) == 0
    request = read_request(out / "0001-2.png")
    assert request is not None and request["request"]["image"] == "seven.png"  # no local path
    for given, hint in (([], "--image FILE"), (["--image", str(folder)], "not a regular file")):
        assert run([*words, *given]) == 3
        assert hint in capsys.readouterr().err


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal gives it: a job in the background of a shell is started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["generate", "evaluate", "data"])
def test_a_signal_ends_a_command_with_its_code(command, number, code, monkeypatch, capsys) -> None:
    def busy(arguments: list[str]) -> int:
        signal.raise_signal(number)
        raise AssertionError("the signal came to nothing")

    monkeypatch.setattr(importlib.import_module(f"triptych.cli.{command}"), "main", busy)
    monkeypatch.setattr(sys, "argv", ["triptych", command])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == code
    assert capsys.readouterr().err == "triptych: stopped\n"


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_signal_while_evaluate_trains_a_judge(trained, tmp_path, number, code) -> None:
    copy, said = shutil.copytree(trained, tmp_path / "cvae"), []  # with no judge beside it
    words = ["evaluate", str(copy), "--no-score", "--likelihood-pictures", "20"]
    with subprocess.Popen(
        [sys.executable, "-m", "triptych", *words], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as evaluating:  # fmt: skip
        assert evaluating.stderr is not None
        for line in evaluating.stderr:
            said.append(line)
            if "judge: step" in line:
                evaluating.send_signal(number)
    assert evaluating.returncode == code, said
    assert said[-1] == "triptych: stopped\n"


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--stepz", "3"], ["--condition", "smell"]])
def test_usage_errors_leave_with_two(flags: list[str], tmp_path: Path) -> None:
    assert run(["train", "cvae", "--run", str(tmp_path), *flags]) == 2

"""Without --model: the bundled one, said on stderr; and bundled names in every place."""

from pathlib import Path

import pytest

from tests.systems.stable_diffusion import tiny_stable_diffusion
from tests.weights.test_bundled_models import box, place  # noqa: F401
from triptych.cli.main import run
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.stable_diffusion.request import TextToImage
from triptych.vision.images import read_request

DEFAULT = TextToImage("").model
DRAW = ["generate", "a red cat", "--steps", "1", "--seed", "1", "--out", "out"]


def test_the_default_is_said_once_and_recorded(box: Path, capsys) -> None:  # noqa: F811
    place(box, DEFAULT)
    assert run(DRAW) == 0
    assert capsys.readouterr().err.count(f"with the model {DEFAULT}, which comes with") == 1
    record = read_request(Path("out/0000-1.png"))
    assert record is not None and record["request"]["model"] == DEFAULT
    assert run([*DRAW, "--model", "small"]) == 0
    assert "with the model" not in capsys.readouterr().err
    # a picture names its model, which is found again
    assert run(["generate", "--from-parameters", "out/0000-1.png", "--out", "again"]) == 0
    assert "with the model" not in capsys.readouterr().err
    first, again = Path("out/0000-1.png"), Path("again/0000-1.png")
    assert first.read_bytes() == again.read_bytes()
    words = ["grid", "a red cat", "--x", "steps=1,2", "--seed", "1", "--out", "grid.png"]
    assert run(words) == 0
    assert f"with the model {DEFAULT}, which comes with" in capsys.readouterr().err


def test_a_model_here_of_that_name_is_said_to_be_here(box: Path, capsys) -> None:  # noqa: F811
    place(box, DEFAULT)
    tiny_stable_diffusion.saved(Path(DEFAULT))
    assert run(DRAW) == 0
    assert f"with the model {DEFAULT} here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [DRAW, ["generate", "--label", "7"], ["grid", "a cat", "--x", "steps=1,2"]],
)
def test_where_there_is_none_it_says_what_to_do(box: Path, capsys, words) -> None:  # noqa: F811
    assert run(words) == 2
    name = ClassToImage().model if "--label" in words else DEFAULT
    assert f"there is no model {name}, the default" in capsys.readouterr().err


def test_nothing_at_all_is_a_usage_error(capsys) -> None:
    assert run(["generate"]) == 2
    assert "give a prompt" in capsys.readouterr().err


def test_help_and_refusals_know_the_kind_of_a_bundled_model(box: Path, capsys) -> None:  # noqa: F811
    assert run(["generate", "--model", "small", "--label", "7"]) == 2
    assert "--label cannot be used: small is a stable-diffusion" in capsys.readouterr().err


def test_a_text_of_another_program_names_a_bundled_model_or_none(box, capsys) -> None:  # noqa: F811
    place(box, DEFAULT)
    text = "a red cat\nSteps: 1, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
    assert run(["generate", "--from-parameters", text]) == 3
    assert "the text names no model" in capsys.readouterr().err
    assert run(["generate", "--from-parameters", f"{text}, Model: smal"]) == 3
    assert "Did you mean 'small'?" in capsys.readouterr().err
    out = ["--out", "drawn", "--steps", "1"]
    assert run(["generate", "--from-parameters", f"{text}, Model: {DEFAULT}", *out]) == 0
    assert Path("drawn/0000-1.png").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["weights", "inspect", "small"],
        ["weights", "doctor", "small"],
        ["weights", "convert", "small", "weights.safetensors"],
        ["weights", "convert", "small", "folder", "--to", "triptych"],
    ],
)
def test_commands_on_weights_take_a_bundled_name(box: Path, capsys, words) -> None:  # noqa: F811
    assert run(words) == 0, capsys.readouterr().err

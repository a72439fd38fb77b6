"""`triptych generate PROMPT` as someone uses it, and what nonsense gets."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import triptych
from tests.systems.stable_diffusion.test_pipeline import half_mask, lora_file, photo
from tests.systems.stable_diffusion.tiny_stable_diffusion import loaded, saved
from triptych import runtime
from triptych.cli import grid as grid_command
from triptych.cli.main import run
from triptych.cli.output import blocks
from triptych.fields import from_json, to_json
from triptych.requests import TextToImage
from triptych.systems.stable_diffusion import pipeline as text_to_image
from triptych.vision.images import open_picture, read_parameters, read_request, save_picture

FOREVER = 3600.0  # seconds after which a process counts as hanging, however busy the machine is
FIRST = Path("pictures/0000-5.png")


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
    """A run folder where texts look for models, and the present folder beside it."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "runs" / "tiny")
    return "runs/tiny"


def command(*words) -> int:
    return run([*map(str, words)])


def generate(*words) -> int:
    return command("generate", *words)


def said(capsys) -> str:
    """What stood on stderr, without the lines that the parser breaks and draws."""
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Traceback" not in error
    return error


def plain(model: str, *words) -> tuple[str, ...]:
    more = ("--model", model, "--precision", "float32", "--seed", "5", "--steps", "2")
    return ("a red cat", *more, *words)


def test_a_prompt_becomes_pictures_that_carry_their_request(tiny, capsys) -> None:
    assert generate(*plain(tiny, "--n", 2, "--json")) == 0
    out = capsys.readouterr()
    assert "2 pictures in pictures, seeds 5 to 6" in out.err
    told = json.loads(out.out)
    files = sorted(path.name for path in Path("pictures").iterdir())
    assert files == ["0000-5.png", "0001-6.png"]
    assert [one["seed"] for one in told["pictures"]] == [5, 6]
    record = read_request(Path("pictures/0001-6.png"))["request"]
    assert record["prompt"] == "a red cat" and record["seed"] == 6 and record["n"] == 1
    assert record["model"] == "tiny" and record["steps"] == 2 and record["size"] == "64x64"
    line = read_parameters(Path("pictures/0001-6.png"))
    assert line.startswith("a red cat\nSteps: 2, Sampler: Euler, ")
    assert "Seed: 6, Size: 64x64" in line and "Model: tiny" in line
    assert str(Path.cwd()) not in json.dumps(record) + line
    request = from_json(TextToImage, record)
    *_, again = triptych.run(request, loaded())
    together = open_picture(Path("pictures/0001-6.png")).astype(int)
    assert np.abs(again.pictures[0] - together).max() <= 1  # company only rounds otherwise


@pytest.mark.parametrize(("name", "ending"), [("jpeg", "jpg"), ("webp", "webp")])
def test_other_formats_carry_both_records_too(tiny, name, ending) -> None:
    assert generate(*plain(tiny, "--format", name)) == 0
    (file,) = Path("pictures").iterdir()
    assert file.name == f"0000-5.{ending}"
    assert read_request(file)["request"]["prompt"] == "a red cat"
    assert "Seed: 5" in read_parameters(file)


def test_every_setting_is_a_flag(tiny, tmp_path) -> None:
    lora = lora_file(loaded().model, tmp_path)
    words = plain(tiny, "--image", photo(tmp_path), "--mask", half_mask(tmp_path))
    more = ("--loras", f"{lora}:0.5", "--negative=-a dog", "--tiling", "--deterministic")
    varied = ("--variation-seed", 9, "--variation-strength", 0.2, "--sampler", "DPM++ 2M Karras")
    assert generate(*words, *more, *varied, "--clip-skip", 2, "--rescale", 0.5) == 0
    record = read_request(Path("pictures/0000-5-9.png"))["request"]
    assert record["loras"] == ["style.safetensors:0.5"] and record["negative"] == "-a dog"
    assert (record["sampler"], record["spacing"]) == ("dpmpp_2m", "karras")
    assert record["image"] == "photo-64-64.png" and record["tiling"] is True


# Replays


def test_our_own_picture_is_drawn_again_and_changed(tiny, capsys) -> None:
    assert generate(*plain(tiny, "--variation-strength", 0.3, "--variation-seed", 8)) == 0
    first = Path("pictures/0000-5-8.png")
    words = ("--from-parameters", first, "--out", "again")
    assert generate(*words) == 0
    again = Path("again/0000-5-8.png")
    assert (open_picture(again) == open_picture(first)).all()
    assert read_request(again) == read_request(first)
    assert generate("a blue dog", *words[:2], "--out", "other", "--seed", 6) == 0
    record = read_request(Path("other/0000-6-8.png"))["request"]
    assert record["prompt"] == "a blue dog" and record["variation_strength"] == 0.3


def test_a_picture_that_was_in_memory_is_asked_for_and_compared(tiny, capsys) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    request = TextToImage("a red cat", image=pixels, seed=3, steps=2, model=Path(tiny).name)
    *_, drawn = triptych.run(replace(request, model=tiny))
    record = to_json(replace(drawn.request, model=Path(tiny).name))
    save_picture(Path("old.png"), drawn.pictures[0], {"request": record})
    save_picture(Path("same.png"), pixels)
    save_picture(Path("other.png"), 255 - pixels)
    replay = "--from-parameters", "old.png", "--model", tiny
    assert generate(*replay) == 3
    assert "64x64, SHA-256" in (words := said(capsys)) and "--image FILE" in words
    assert generate(*replay, "--image", "same.png", "--out", "again") == 0
    assert "another" not in said(capsys)
    (again,) = Path("again").iterdir()
    assert (open_picture(again) == drawn.pictures[0]).all()
    assert generate(*replay, "--image", "other.png", "--out", "changed") == 0
    assert "image is another than in the record, which has 64x64" in said(capsys)


def test_latents_of_a_file_replace_the_noise_of_the_seed(tiny, capsys) -> None:
    np.save("noise.npy", runtime.noise((4, 8, 8), [5]).numpy())
    assert generate(*plain(tiny, "--out", "seeded")) == 0
    words = plain(tiny, "--seed", 9, "--latents", "noise.npy", "--out", "given")
    assert generate(*words) == 0
    seeded, given = Path("seeded/0000-5.png"), Path("given/0000-9.png")
    assert (open_picture(seeded) == open_picture(given)).all()
    assert read_request(given)["request"]["latents"] == "noise.npy"
    assert generate("a cat", "--model", tiny, "--latents", "seeded/0000-5.png") == 3
    assert "latents seeded/0000-5.png: not an .npy file" in said(capsys)


def test_another_picture_of_the_same_name_is_noticed(tiny, capsys) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save_picture(Path("photo.png"), pixels)
    Path(half_mask(Path())).rename("mask.png")
    words = "--image", "photo.png", "--mask", "mask.png", "--steps", "2"
    assert generate("a red cat", *words, "--model", tiny, "--seed", "5", "--out", "first") == 0
    replay = "--from-parameters", "first/0000-5.png", "--model", tiny
    assert generate(*replay, "--out", "again") == 0
    assert "another" not in said(capsys)
    assert triptych.recall("first/0000-5.png").image == "photo.png"
    save_picture(Path("photo.png"), 255 - pixels)
    assert generate(*replay, "--out", "again") == 0
    assert "image is another than in the record, which has 64x64" in said(capsys)
    with pytest.raises(ValueError, match="image is another"):
        triptych.recall("first/0000-5.png")
    save_picture(Path("other.png"), pixels)
    assert triptych.recall("first/0000-5.png", image="other.png").image == "other.png"
    Path("photo.png").unlink()
    assert generate(*replay) == 3 and "image photo.png: No such file" in said(capsys)


def test_our_own_text_is_drawn_again(tiny) -> None:
    assert generate(*plain(tiny)) == 0
    line = read_parameters(FIRST)
    assert generate("--from-parameters", line, "--out", "again", "--precision", "float32") == 0
    assert (open_picture(Path("again/0000-5.png")) == open_picture(FIRST)).all()


LINE = (
    "a red cat\nNegative prompt: a dog\nSteps: 3, Sampler: DPM++ 2M, CFG scale: 4.5, Seed: 77, "
    "Size: 72x64, Model: tiny"
)


def test_a_line_of_automatic1111_has_its_conventions(tiny, capsys) -> None:
    assert generate("--from-parameters", LINE, "--precision", "float32") == 0
    assert "karras" in capsys.readouterr().err
    (file,) = Path("pictures").iterdir()
    record = read_request(file)["request"]
    expected = {
        "noise_source": "philox", "conventions": "automatic1111", "spacing": "karras",
        "sampler": "dpmpp_2m", "seed": 77, "size": "72x64", "guidance": 4.5, "negative": "a dog",
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert open_picture(file).shape == (64, 72, 3)
    on_the_cpu = f"{LINE}, RNG: CPU"
    assert generate("--from-parameters", on_the_cpu, "--out", "cpu") == 0
    assert read_request(Path("cpu/0000-77.png"))["request"]["noise_source"] == "cpu"


def test_a_picture_of_another_program_is_replayed(tiny) -> None:
    other = Path("other.png")
    save_picture(other, np.zeros((8, 8, 3), np.uint8), parameters=LINE)
    assert generate("--from-parameters", other) == 0
    assert Path("pictures/0000-77.png").is_file()


def test_a_line_names_only_what_is_installed(tiny, tmp_path, capsys) -> None:
    for text, words in (
        (LINE.replace("tiny", "SD XL"), "model 'SD XL' is not in runs or models"),
        (LINE.replace("tiny", "tinny"), "Did you mean 'tiny'"),
        (LINE.replace("tiny", "../../etc"), "model 'etc' is not in"),
        (LINE.replace("tiny", ".."), "not in runs or models"),
        (LINE.replace("tiny", "x" * 5000), "not in runs or models"),
        (LINE.replace("tiny", "x" * 300).replace("\n", " "), "not in runs or models"),
        (LINE.replace("red cat", f"cat <lora:{'x' * 5000}:1>"), "no LoRA 'xxx"),
        (LINE.replace(", Model: tiny", ""), "names no model"),
        (LINE.replace("red cat", "cat <lora:style:1>"), "no LoRA 'style'"),
        (LINE.replace("DPM++ 2M", "DPM++ 2N"), "Did you mean"),
        ("a cat", "has no settings"),
    ):
        assert generate("--from-parameters", text) == 3
        assert words in said(capsys)
    assert generate("--from-parameters", LINE.replace("tiny", "SD XL"), "--model", tiny) == 0


# Watching and stopping


def test_a_preview_file_is_rewritten_on_the_way(tiny) -> None:
    assert generate(*plain(tiny, "--preview", "look.png")) == 0
    assert open_picture(Path("look.png")).shape == (8, 8, 3)


def test_blocks_are_two_pixels_high() -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[32:] = (255, 0, 0)
    text = blocks(picture)
    lines = text.plain.rstrip("\n").split("\n")
    assert len(lines) == 10 and set(map(len, lines)) == {40}
    assert str(text.spans[0].style) == "rgb(0,0,0) on rgb(0,0,0)"
    assert str(text.spans[-1].style) == "rgb(255,0,0) on rgb(255,0,0)"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_ctrl_c_stops_within_a_step_and_saves_nothing_half(tiny, tmp_path, number, code) -> None:
    words = ["generate", "a cat", "--model", tiny, "--n", "3", "--steps", "900", "--deterministic"]
    more = ["--preview", "look.png", "--size", "256x256", "--seed", "1"]
    source = str(Path(text_to_image.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych", *words, *more],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        # A shell's background job, such as this test may be part of, ignores Ctrl-C; so would ours.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "look.png").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=FOREVER)
    assert process.returncode == code
    assert "0 of 3 pictures are in pictures" in error and "Traceback" not in error
    assert list((tmp_path / "pictures").iterdir()) == []


# Nonsense


def nonsense(tmp_path: Path) -> dict[str, tuple[tuple[object, ...], int, str]]:
    """What is asked, the exit code, and a part of the sentence."""
    (tmp_path / "notes.png").write_text("no picture")
    save_picture(tmp_path / "silent.png", np.zeros((8, 8, 3), np.uint8))
    flux = {"lora_unet_double_blocks_0_x.lora_down.weight": torch.zeros(2, 8)}
    flux |= {"lora_unet_double_blocks_0_x.lora_up.weight": torch.zeros(8, 2)}
    save_file(flux, tmp_path / "flux.safetensors")
    return {
        "too small": (("--size", "12x64"), 2, "16 to 4096"),
        "too large": (("--size", "5000x64"), 2, "16 to 4096"),
        "no size": (("--size", "big"), 2, "WIDTHxHEIGHT"),
        "sampler": (("--sampler", "eulr a"), 2, "Did you mean 'euler a'"),
        "spacing": (("--spacing", "kerras"), 2, "no spacing"),
        "steps": (("--steps", "2000"), 2, "1 to 1000"),
        "more steps than times": (("--steps", "1000"), 3, "repeat a level"),
        "silent": (("--from-parameters", "silent.png"), 3, "carries no parameters"),
        "no file": (("--from-parameters", "gone.png"), 3, "no picture 'gone.png'"),
        "no picture": (("--from-parameters", "notes.png"), 3, "notes.png: not a PNG"),
        "family": (("--loras", "flux.safetensors"), 3, "FLUX"),
        "no image": (("--image", "notes.png"), 3, "notes.png: not a PNG"),
        "gone": (("--image", "gone.png"), 3, "No such file"),
        "mask": (
            ("--image", photo(tmp_path), "--mask", half_mask(tmp_path, 32, 64)), 3, "the same size",
        ),
        "no start": (("--strength", "0.5"), 2, "give an image"),
        "label": (("--label", "cat"), 2, "--label cannot be used: runs/tiny is a stable-diffusion"),
        "truncation": (("--truncation=0.5",), 2, "--truncation cannot be used"),
        "two prompts": (("and another",), 2, "one prompt, in quotes"),
        "preview": (("--preview", "look.gif"), 2, ".png, .jpg, .jpeg or .webp"),
    }  # fmt: skip


def test_nonsense_gets_a_sentence_and_a_code(tiny, tmp_path, capsys) -> None:
    for case, (words, code, hint) in nonsense(tmp_path).items():
        assert generate("a cat", "--model", tiny, *words) == code, case
        assert hint in said(capsys), case
    assert not list(Path().glob("pictures/*"))


def test_prompts_and_models_that_do_not_fit(tiny, tmp_path, capsys) -> None:
    assert generate("a" * 1_000_000, "--model", tiny) == 2
    assert "1,000,000 characters; at most 32,000" in said(capsys)
    assert generate("--model", tiny) == 2
    assert "there is no prompt" in said(capsys)
    assert generate("a cat", "--model", "nowhere") == 3
    assert "no model 'nowhere'" in said(capsys)
    classes = tmp_path / "classes"
    classes.mkdir()
    (classes / "config.json").write_text('{"model": "wgan", "config": {}}')
    assert generate("a cat", "--model", "classes") == 2
    assert "classes is a wgan, which takes no prompt" in said(capsys)
    assert generate("--model", "classes", "--negative", "x") == 2
    assert "--negative cannot be used: classes is a wgan" in said(capsys)


def test_a_truncated_checkpoint_is_told(tiny, capsys) -> None:
    weights = Path(tiny) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert generate(*plain(tiny)) == 3
    assert "model.safetensors" in said(capsys)


# Sweeps


def grid(*words) -> int:
    return command("grid", *words)


def test_a_grid_holds_the_picture_of_every_pair(tiny, capsys, monkeypatch) -> None:
    kept = {}
    plain_tables = grid_command.draw_tables
    monkeypatch.setattr(
        grid_command,
        "draw_tables",
        lambda found, *rest: plain_tables(kept.setdefault("all", found), *rest),
    )
    words = plain(tiny, "--x", "sampler=euler,ddim,dpmpp_2m", "--y", "guidance=1,6.5")
    assert grid(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sweep"] == {"sampler": ["euler", "ddim", "dpmpp_2m"], "guidance": [1.0, 6.5]}
    assert len(kept["all"]) == 6
    request = TextToImage(
        "a red cat", precision="float32", seed=5, steps=2, sampler="ddim", guidance=6.5
    )
    *_, cell = triptych.run(replace(request, model=tiny))
    assert (kept["all"][4] == cell.pictures[0]).all()  # second row, second column
    sheet = open_picture(Path("grid.png"))
    corners = [
        (y, x) for y in range(sheet.shape[0] - 63) for x in range(sheet.shape[1] - 63)
        if (sheet[y, x : x + 64] == cell.pictures[0][0]).all()
        and (sheet[y : y + 64, x : x + 64] == cell.pictures[0]).all()
    ]  # fmt: skip
    assert len(corners) == 1
    assert read_request(Path("grid.png"))["grid"]["request"]["model"] == "tiny"


def test_three_fields_of_any_kind(tiny) -> None:
    words = plain(tiny, "--x", "size=64x64,96x72", "--y", 'prompt="a cat, red",a dog')
    assert grid(*words, "--z", "tiling=true,false", "--out", "sweeps/all.webp") == 0
    one = open_picture(Path("sweeps/all.webp")).shape
    assert grid(*words[:-4], *words[-4:-2], "--out", "row.png") == 0
    assert one[0] > 3 * open_picture(Path("row.png")).shape[0] / 2


def test_sweeps_that_do_not_do(tiny, capsys) -> None:
    for words, hint in (
        ((), "there is no sweep"),
        (("--x", "stepz=1,2"), "Did you mean 'steps'"),
        (("--x", "steps=1,many"), "steps is a number, not 'many'"),
        (("--x", "steps="), "no values"),
        (("--x", "steps=1,2000"), "1 to 1000"),
        (("--x", "tiling=1"), "true or false"),
        (("--x", "noise_source=gpu"), "one of 'cpu', 'philox'"),
        (("--x", "steps=1,2", "--y", "steps=3"), "each sweep must be of another option"),
        (("--x", "n=1,2"), "OPTION=VALUE"),
        (("--x", "steps=" + ",".join(map(str, range(1, 500)))), "at most 400"),
        (("--x", "steps=1,2", "--out", "grid.tif"), ".png, .jpg, .jpeg or .webp"),
    ):
        assert grid(*plain(tiny, *words)) == 2, words
        assert hint in said(capsys), words


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is an extra")
def test_openvino_is_said_and_recorded(tiny, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").resolve()))
    assert generate(*plain(tiny, "--backend", "openvino")) == 0
    assert "is being converted for OpenVINO" in said(capsys)
    assert read_request(FIRST)["request"]["backend"] == "openvino"
    assert generate(*plain(tiny, "--backend", "openvino", "--out", "again")) == 0
    assert "converted" not in said(capsys)


def test_openvino_that_is_not_installed_is_named(tiny, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert generate(*plain(tiny, "--backend", "openvino")) == 3
    assert 'OpenVINO is not installed: `pip install "triptych[openvino]"`' in said(capsys)

"""Pictures through embeddings: seeds, what a request needs, and the command."""

import json

import numpy as np
import pytest

import triptych
from tests.parity.pipelines import psnr
from tests.systems.unclip.tiny_unclip import loaded, saved
from triptych.cli.main import run as command
from triptych.requests import UnclipPictures
from triptych.running import run
from triptych.vision.images import open_picture, read_request, save_picture


@pytest.fixture(scope="module")
def tiny():
    return loaded()


def draw(tiny, **fields):
    *_, last = run(UnclipPictures(**{"prompt": "a red cat", "seed": 5} | fields), tiny)
    return last


@pytest.mark.parametrize("prior", ["diffusion", "none"])
def test_a_picture_does_not_depend_on_its_company(tiny, prior):
    """To the bit one at a time, and to 45 dB in a batch; also with two candidates."""
    alone = draw(tiny, seed=6, prior=prior).pictures[0]
    assert np.array_equal(draw(tiny, n=2, prior=prior, deterministic=True).pictures[1], alone)
    together = draw(tiny, n=2, prior=prior).pictures
    assert psnr(together[1], alone) >= 45
    assert psnr(together[0], alone) < 20


def test_every_setting_has_an_effect(tiny):
    plain = draw(tiny).pictures
    for change in (
        {"prompt": "a blue dog"}, {"prior": "none"}, {"prior_steps": 2}, {"steps": 2},
        {"upsampler_steps": 3}, {"prior_guidance": 1.0}, {"guidance": 1.0}, {"seed": 6},
    ):  # fmt: skip
        assert not np.array_equal(draw(tiny, **change).pictures, plain), change


def test_progress_rises_to_one_and_what_was_not_read_is_said(tiny):
    items = list(run(UnclipPictures("a red cat " * 9, seed=5, n=2), tiny))
    shares = [item.done for item in items]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(set(shares)) > 8
    assert "longer than 12 tokens" in items[-1].notes[0]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"prompt": ""}, "needs prompt"),
        ({"prompt": "", "what": "variations"}, "needs image"),
        ({"what": "variations", "image": "x.png"}, "takes no prompt"),
        ({"image": "x.png"}, "takes no image"),
        ({"n": 0}, "n must be"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"prior_steps": 1001}, "at most 1000"),
        ({"guidance": float("nan")}, "guidance must be 0 to 100"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_request_says_what_it_lacks(fields, why):
    with pytest.raises(ValueError, match=why):
        UnclipPictures(**{"prompt": "a red cat"} | fields)


def test_the_command(tmp_path, monkeypatch, capsys):
    """Pictures that carry the request which draws them again, a strip, and variations of one."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "runs" / "tiny")
    model = ["--model", "runs/tiny", "--seed", "5"]
    assert command(["generate", "a red cat", *model, "--n", "2", "--deterministic", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["shows"] for one in told["pictures"]] == ["seed 5", "seed 6"]
    assert open_picture(tmp_path / told["strip"]).shape[1] > 100
    record = read_request(tmp_path / "pictures" / "0001-6.png")["request"]
    assert (record["prompt"], record["seed"], record["model"]) == ("a red cat", 6, "tiny")
    request = triptych.recall("pictures/0001-6.png", model="runs/tiny")
    *_, last = triptych.run(request)
    assert np.array_equal(last.pictures[0], open_picture(tmp_path / "pictures" / "0001-6.png"))
    save_picture(tmp_path / "cat.png", last.pictures[0])
    assert command(["generate", "--what", "variations", "--image", "cat.png", *model]) == 0
    assert (tmp_path / "pictures" / "0002-5.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ([], 2, "there is no prompt"),
        (["a", "cat"], 2, "one prompt, in quotes"),
        (["a cat", "--sampler", "ddim"], 2, "--sampler cannot be used: runs/tiny is a unclip"),
        (["a cat", "--prior", "linear"], 2, "prior"),
        (["--what", "variations", "--image", "none.png"], 3, "none.png"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys, words, code, why):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "runs" / "tiny")
    assert command(["generate", *words, "--model", "runs/tiny"]) == code
    error = " ".join(capsys.readouterr().err.split())
    assert why in error and "Traceback" not in error
    assert not (tmp_path / "pictures").exists() or not list((tmp_path / "pictures").iterdir())


def test_a_model_of_another_kind_is_named(tiny):
    from tests.systems.stable_diffusion.tiny_stable_diffusion import loaded as other

    with pytest.raises(ValueError, match="is a stable-diffusion, which draws nothing from CLIP"):
        draw(other())

"""Pictures through embeddings: seeds, what a request needs, and the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import triptych
from tests.parity.pipelines import photograph, psnr
from tests.systems.unclip.tiny_unclip import DECODER, PRIOR, loaded, saved
from triptych import runtime
from triptych.cli.main import run as command
from triptych.diffusion.noise import PictureNoise
from triptych.fields import to_json
from triptych.requests import UnclipPictures
from triptych.running import run
from triptych.systems.unclip import decoder
from triptych.systems.unclip.answer import draw_strip
from triptych.systems.unclip.draw import encode, in_precision
from triptych.systems.unclip.prior import COSINE, DiffusionPrior
from triptych.train import checkpoint
from triptych.vision.images import open_picture, read_request, save_picture
from triptych.weights.loaded import Card


@pytest.fixture(scope="module")
def tiny():
    return loaded()


def draw(tiny, **fields):
    plain = {"prompt": "a red cat", "seed": 5, "precision": "float32"}
    *_, last = run(UnclipPictures(**plain | fields), tiny)
    return last


@pytest.mark.parametrize("prior", ["diffusion", "autoregressive", "none"])
def test_a_picture_does_not_depend_on_its_company(tiny, prior):
    """To the bit one at a time, and to 45 dB in a batch; also with two candidates."""
    alone = draw(tiny, seed=6, prior=prior).pictures[0]
    assert np.array_equal(draw(tiny, n=2, prior=prior, deterministic=True).pictures[1], alone)
    together = draw(tiny, n=2, prior=prior).pictures
    assert psnr(together[1], alone) >= 45
    assert psnr(together[0], alone) < 20


@pytest.mark.parametrize("prior", ["diffusion", "autoregressive"])
def test_bfloat16_is_what_is_fast(tiny, monkeypatch, prior):
    """The weights are float32 again afterwards."""
    pictures = []
    for fast, name in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(runtime, "fast_bfloat16", lambda fast=fast: fast)
        pictures.append(draw(tiny, prior=prior, precision=name).pictures)
        own = draw(tiny, prior=prior, precision="auto").pictures
        assert np.array_equal(own, pictures[-1])
    assert not np.array_equal(*pictures)
    assert all(weight.dtype == torch.float32 for weight in tiny.model.parameters())


@torch.no_grad()
def test_padding_of_captions_is_cut_and_changes_nothing(tiny):
    """To the longest of all captions, also those that guidance leads away from."""
    torch.manual_seed(0)
    model = tiny.model.decoder
    cond, uncond = (encode(tiny.model, tiny.tokenizer, [text]) for text in ("a red cat", "a"))
    image, x, time = torch.randn(1, 8), torch.randn(1, 3, 8, 8), torch.tensor([300.0])
    whole = [model.encode_condition(image, **each) for each in (cond, uncond)]
    words = 2 + int(cond["mask"].sum())
    assert words < whole[0]["context"].shape[1]
    for before, after in zip(whole, decoder.cut_padding(*whole), strict=True):
        assert after["context"].shape[1] == after["mask"].shape[1] == words
        expected = model.predict(x, time, before)
        torch.testing.assert_close(model.predict(x, time, after), expected)


@torch.no_grad()
def test_bfloat16_costs_each_network_less_than_two_percent(tiny):
    """Of the root mean square of its output, at weights that are all far from zero."""
    torch.manual_seed(0)
    model, time = tiny.model, torch.tensor([20.0, 500.0, 900.0])
    cond = encode(model, tiny.tokenizer, ["a red cat", "a blue dog", "a"])
    shown = model.decoder.encode_condition(torch.randn(3, 8), **cond)
    codes = torch.randint(8, (3, 4))
    networks = {
        "prior": lambda x: model.prior.predict_after(
            x[:, 0, 0], time, model.prior.read_texts(cond)
        ),
        "autoregressive": lambda x: model.autoregressive(codes, cond, codes[:, 0] % 4),
        "decoder": lambda x: model.decoder.predict(x, time, shown),
        "upsamplers.0": lambda x: model.upsamplers[0].predict(x, time, x),
    }
    for name, call in networks.items():
        network, x = model.get_submodule(name), torch.randn(3, 3, 8, 8)
        exact = call(x)
        with in_precision(network, UnclipPictures("x", precision="bfloat16")) as mode, mode():
            error = call(x).float() - exact
        share = float(error.square().mean().sqrt() / exact.square().mean().sqrt())
        assert 1e-4 < share < 0.02, (name, share)


def test_every_setting_has_an_effect(tiny):
    plain = draw(tiny).pictures
    for change in (
        {"prompt": "a blue dog"}, {"prior": "none"}, {"prior": "autoregressive"},
        {"prior_steps": 2}, {"steps": 2}, {"upsampler_steps": 3}, {"prior_guidance": 1.0},
        {"guidance": 1.0}, {"seed": 6},
    ):  # fmt: skip
        assert not np.array_equal(draw(tiny, **change).pictures, plain), change


def test_progress_rises_to_one_and_what_was_not_read_is_said(tiny):
    items = list(run(UnclipPictures("a red cat " * 9, seed=5, n=2), tiny))
    shares = [item.done for item in items]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(set(shares)) > 8
    assert "longer than 12 tokens" in items[-1].notes[0]


@pytest.fixture(scope="module")
def photos():
    return [np.array(photograph(20, 30)), np.array(photograph(20, 30))[::-1].copy()]


def from_pictures(tiny, what, photos, **fields):
    return draw(tiny, what=what, image=photos[0], **{"prompt": ""} | fields)


@pytest.mark.parametrize(
    ("what", "more", "labels"),
    [
        ("interpolation", {"shares": (0.0, 0.5, 1.0)}, ("0", "0.5", "1")),
        ("difference", {"before": "a cat", "prompt": "a dog", "shares": (0, 0.4)}, ("0", "0.4")),
        ("ladder", {"shares": (0.25, 1.0)}, ("1 of 4", "4 of 4")),
        ("ladder", {}, ("1 of 4", "2 of 4", "4 of 4")),  # none twice
        ("reconstruction", {}, ("reconstruction",)),
        ("variations", {"n": 2, "eta": 0.5}, ("seed 5", "seed 6")),
    ],
)
def test_pictures_made_from_others_are_a_labelled_strip(tiny, photos, what, more, labels):
    """Each picture of a strip is another, and is drawn again alone by its own request."""
    second = {"second": photos[1]} if what == "interpolation" else {}
    drawn = from_pictures(tiny, what, photos, deterministic=True, **more, **second)
    assert drawn.labels == labels and len(drawn.pictures) == len(labels)
    strip = draw_strip(drawn)
    assert strip.shape[1] > 56 * (len(labels) + len(drawn.given))
    for number in range(len(labels)):
        *_, alone = run(drawn.request_of(number), tiny)
        assert np.array_equal(alone.pictures[0], drawn.pictures[number])
        for other in range(number):
            assert not np.array_equal(drawn.pictures[number], drawn.pictures[other])


def test_the_ends_of_an_interpolation_are_the_reconstructions(tiny, photos):
    more = {"deterministic": True}
    ends = from_pictures(
        tiny, "interpolation", photos, second=photos[1], shares=(0.0, 1.0), **more
    ).pictures
    for photo, end in zip(photos, ends, strict=True):
        again = from_pictures(tiny, "reconstruction", [photo], **more).pictures[0]
        assert psnr(end, again) >= 45


def test_an_inverted_picture_is_drawn_again():
    """By the exact denoiser of normally distributed pictures of deviation 0.25, of which DDIM makes
    0.25 times the noise (arXiv:2011.13456, equation 13, solved for this denoiser).
    """
    deviation = 0.25

    def predict(x, time, cond):
        signal = COSINE.signal[time.long()].view(-1, 1, 1, 1)
        noise = (1 - signal).sqrt() * x / (signal * deviation**2 + 1 - signal)
        return torch.cat([noise, torch.zeros_like(x)], 1)

    exact = SimpleNamespace(config=DECODER, predict=predict, null_image=torch.zeros(1).double())
    torch.manual_seed(0)
    picture = deviation * torch.randn(2, 3, 8, 8).double().clamp(-3.5, 3.5)
    errors = []
    for count in (50, 100):
        noise = decoder.invert(exact, picture, {}, steps=count)
        assert (noise - picture / deviation).abs().max() < 10 / count
        steps = decoder.sample(
            exact, {}, {}, PictureNoise([0, 1]), steps=count, guidance=1.0, sampler="ddim",
            eta=0.0, start=noise,
        )  # fmt: skip
        *_, last = steps
        errors.append(float((last.x - picture).abs().mean()))
    assert errors[1] < 0.02 and 1.8 < errors[0] / errors[1] < 2.2  # of first order


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"prompt": ""}, "needs prompt"),
        ({"prompt": "", "what": "interpolation", "image": "x.png"}, "needs second"),
        ({"what": "difference", "image": "x.png"}, "needs before"),
        ({"shares": (0.5,)}, "takes no shares"),
        ({"prompt": "", "what": "ladder", "image": "x.png", "shares": (1.5,)}, "from 0 to 1"),
        ({"prompt": "", "what": "ladder", "image": "x.png", "n": 2}, "n must be 1 to 1"),
        ({"eta": 0.5}, "eta is for variations"),
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


def test_help_lists_its_options(tmp_path, capsys):
    saved(tmp_path / "run")
    assert command(["generate", "--model", str(tmp_path / "run"), "--help"]) == 0
    assert "--prior-steps" in capsys.readouterr().out


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


def test_a_part_alone_draws_nothing(tmp_path, capsys):
    folder = tmp_path / "run" / "prior"
    folder.mkdir(parents=True)
    card = Card("unclip-prior", to_json(PRIOR))
    checkpoint.export(folder, DiffusionPrior(PRIOR), to_json(card))
    assert command(["generate", "a red cat", "--model", str(folder)]) == 3
    said = capsys.readouterr().err
    assert "is one of the parts of a model, unclip-prior: give" in said and "run\n" in said


def test_a_model_of_another_kind_is_named(tiny):
    from tests.systems.stable_diffusion.tiny_stable_diffusion import loaded as other

    with pytest.raises(ValueError, match="is a stable-diffusion, which draws nothing from CLIP"):
        draw(other())

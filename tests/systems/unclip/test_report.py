"""The comparison of the priors."""

import json
from dataclasses import replace

import pytest
import torch

from tests.systems.unclip.tiny_unclip import DECODER, PRIOR, UPSAMPLER, config, loaded, saved
from triptych.cli.main import run as command
from triptych.config import write_json
from triptych.data.scene_source import SceneSource
from triptych.fields import to_json
from triptych.loading import load
from triptych.requests import Training, TrainUnclip
from triptych.scenes.drawing import draw
from triptych.scenes.scene import COLOURS
from triptych.systems.unclip import report
from triptych.systems.unclip.evaluation import enlarged, figures, judged, priors
from triptych.systems.unclip.prior import DiffusionPrior
from triptych.systems.unclip.upsampler import Upsampler, shrink
from triptych.train import checkpoint
from triptych.weights.loaded import Card


@pytest.fixture(scope="module")
def tiny():
    """Of pictures of 32 pixels, which the judge reads."""
    return loaded(settings())


def settings():
    decoder, upsampler = replace(DECODER, size=32), replace(UPSAMPLER, small=32, size=64)
    return config(decoder=decoder, upsamplers=(upsampler,))


def test_an_interval_is_the_means_own():
    values = torch.arange(100.0)
    figure = figures.mean_figure(values)
    assert figure["value"] == pytest.approx(49.5) and figure["count"] == 100
    half = 1.959964 * float(values.std()) / 10
    assert figure["high"] - 49.5 == pytest.approx(half) == 49.5 - figure["low"]


def test_a_picture_of_an_equal_caption_is_found_too():
    images = torch.eye(4)
    drawn = images[[0, 2, 3, 3]]  # the second is nearest to the third, and so on
    assert priors.retrieved(drawn, images, list("abcd")).tolist() == [True, False, False, True]
    assert priors.retrieved(drawn, images, list("abbd")).tolist() == [True, True, False, True]


def test_the_regression_is_least_squares(tiny, monkeypatch):
    """Of image embeddings that are a linear function of the texts' it finds that function."""
    torch.manual_seed(0)
    texts, weights = torch.randn(300, 8), torch.randn(9, 8)
    images = torch.cat([texts, torch.ones(300, 1)], 1) @ weights
    monkeypatch.setattr(priors, "LEARNED_FROM", 300)
    monkeypatch.setattr(priors, "embed", lambda *_: (["x"] * 300, images))
    monkeypatch.setattr(priors, "encode_in_batches", lambda *_: texts)
    predict = priors.fit_regression(tiny, SceneSource("scenes-one"))
    torch.testing.assert_close(predict(texts), images, atol=0.01, rtol=0.01)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run folder of the chain, and fewer pictures than a report takes."""
    monkeypatch.setattr(priors, "LEARNED_FROM", 40)
    monkeypatch.setattr(judged, "SCALES", (1.0, 4.0))
    folder = saved(tmp_path / "run", settings())
    request = TrainUnclip(Training("scenes-one", size=32), clip="clip")
    write_json(folder / "run.json", {"recipe": "unclip", "request": to_json(request)})
    return folder


def write_part(folder, network, kind):
    folder.mkdir()
    checkpoint.export(folder, network, to_json(Card(kind, to_json(network.config))))
    return folder


def intervals(rows):
    """All figures of nested rows."""
    if "value" in rows:
        yield rows
    else:
        for row in rows.values():
            yield from intervals(row) if isinstance(row, dict) else ()


def test_every_comparison_has_its_figures(run_folder, tmp_path, capsys):
    other = write_part(tmp_path / "other", Upsampler(settings().upsamplers[0]), "unclip-upsampler")
    words = ["evaluate", str(run_folder), "--prompts", "12", "--pictures", "2", "--more", "3"]
    assert command([*words, "--steps", "1", "--json", "--upsampler", str(other)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["priors"]) == ["none", "linear", "autoregressive", "diffusion"]
    names = {
        "cosine_true", "cosine_shuffled", "cosine_text", "retrieval_at_1", "diversity",
        "milliseconds", "whole_nearest", "whole_strict", "whole_nearest_caption",
    }  # fmt: skip
    for name, row in found["priors"].items():
        assert set(row) - {"share_of_true"} == names
        assert (row["diversity"]["value"] > 2e-6) == (name in ("autoregressive", "diffusion"))
    assert found["priors"]["none"]["cosine_text"]["value"] == pytest.approx(1, abs=1e-5)
    assert found["priors"]["linear"]["cosine_true"]["value"] > 0.5
    assert set(found["two_objects"]) == {"true_embeddings", "diffusion"}
    assert set(found["variations"]) == {"1", "4"}
    assert {"read", "colour", "shape", "ground"} <= set(found["variations"]["4"])
    assert list(found["upsamplers"]) == ["upsampler-1", str(other)]
    for rows in found["upsamplers"].values():
        assert set(rows) == {"small", "size", "real", "true", "decoder"}
        assert {"psnr", "psnr_bicubic", "psnr_small", "kid"} <= set(rows["true"])
        assert {"psnr_small", "kid", "kid_bicubic"} <= set(rows["decoder"])
        assert rows["true"]["psnr_bicubic"]["value"] > rows["true"]["psnr"]["value"]
    measured = list(intervals(found))
    assert len(measured) > 60 and all(f["low"] <= f["value"] <= f["high"] for f in measured)
    page = (run_folder / "evaluation" / "priors.md").read_text()
    for part in ("| diffusion |", "12 held-out captions", "two objects", "32 to 64 pixels"):
        assert part in page


def test_an_upsampler_that_does_not_fit_is_refused_before_the_work(run_folder, tmp_path, capsys):
    for network, kind, why in (
        (Upsampler(UPSAMPLER), "unclip-upsampler", "makes 8 pixels 16, and the first upsampler"),
        (DiffusionPrior(PRIOR), "unclip-prior", "is no run of `triptych train unclip-upsampler`"),
    ):
        other = write_part(tmp_path / kind, network, kind)
        assert command(["evaluate", str(run_folder), "--upsampler", str(other)]) == 3
        assert why in capsys.readouterr().err


def test_true_scenes_keep_their_attributes_and_show_their_captions():
    """The world's own pictures are what the judge takes them for; colours that are exchanged are
    not, and only the attribute that was changed is.
    """
    source = SceneSource("scenes-one", "test", 64)
    truth = judged.true_attributes(source, range(40))
    columns = source.read(range(40))
    read = [judged.read_nearest(picture) for picture in columns["image"]]
    shares = judged.agreement(read, truth, judged.NAMES)
    assert all(share.value > 0.9 for share in shares.values())
    whole = judged.judge_pictures(columns["image"], columns["caption"])
    assert whole["whole_nearest"]["value"] > 0.9
    exchanged = [replace(s, things=(replace(s.things[0], colour=COLOURS[(COLOURS.index(
        s.things[0].colour) + 1) % len(COLOURS)]),)) for s in source.scenes(range(40))]  # fmt: skip
    read = [judged.read_nearest(draw(scene, 64)) for scene in exchanged]
    shares = judged.agreement(read, truth, judged.NAMES)
    assert shares["colour"].value < 0.2 and shares["shape"].value > 0.9


def test_what_an_upsampler_is_measured_by():
    """Real pictures are at no distance, and those with noise at some, which a CLIP that reads
    pictures of 32 pixels hardly sees in complete ones; and a ratio has its own interval.
    """
    torch.manual_seed(0)
    clip, source = load("scenes-clip", dtype="float32"), SceneSource("scenes-one", "test", 64)
    one, other = (enlarged.take_large(replace(source, split=s), 24) for s in ("test", "train"))
    features = enlarged.embed_squares(clip, other)
    assert len(features) == 24 * 4
    noisy = (one + 0.3 * torch.randn_like(one)).clamp(-1, 1)
    same, further = (
        enlarged.kid(enlarged.embed_squares(clip, each), features, 24) for each in (one, noisy)
    )
    assert same["low"] < 0 < same["high"] < further["value"]
    complete = (enlarged.embed_squares(clip, shrink(each, 2)) for each in (noisy, other))
    assert enlarged.kid(*complete, 24)["value"] < further["value"] / 2
    ratio = figures.ratio_figure(figures.share_figure(80, 100), figures.share_figure(90, 100))
    assert ratio["value"] == pytest.approx(8 / 9)
    draws = torch.distributions.Binomial(100, torch.tensor([0.8, 0.9])).sample((20_000,))
    low, high = (draws[:, 0] / draws[:, 1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert (ratio["low"], ratio["high"]) == pytest.approx((low, high), abs=0.015)
    assert figures.ratio_figure(figures.share_figure(0, 9), figures.share_figure(5, 9)) is None


def test_a_part_alone_is_not_compared(tmp_path, tiny):
    stranger = replace(tiny, model=tiny.model.prior)
    run = type("Run", (), {"loaded": stranger, "run": tmp_path})()
    with pytest.raises(ValueError, match="is a part of a DALL-E 2"):
        next(report.evaluate(None, run))

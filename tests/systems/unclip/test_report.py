"""The comparison of the priors."""

import json
from dataclasses import replace

import pytest
import torch

from tests.systems.unclip.tiny_unclip import DECODER, UPSAMPLER, config, loaded, saved
from triptych.cli.main import run as command
from triptych.config import write_json
from triptych.data.scene_source import SceneSource
from triptych.fields import to_json
from triptych.requests import Training, TrainUnclip
from triptych.systems.unclip import report


@pytest.fixture(scope="module")
def tiny():
    """Of pictures of 32 pixels, which the judge reads."""
    return loaded(settings())


def settings():
    decoder, upsampler = replace(DECODER, size=32), replace(UPSAMPLER, small=32, size=64)
    return config(decoder=decoder, upsamplers=(upsampler,))


def test_an_interval_is_the_means_own():
    values = torch.arange(100.0)
    figure = report.mean_figure(values)
    assert figure["value"] == pytest.approx(49.5) and figure["count"] == 100
    half = 1.959964 * float(values.std()) / 10
    assert figure["high"] - 49.5 == pytest.approx(half) == 49.5 - figure["low"]


def test_a_picture_of_an_equal_caption_is_found_too():
    images = torch.eye(4)
    drawn = images[[0, 2, 3, 3]]  # the second is nearest to the third, and so on
    assert report.retrieved(drawn, images, list("abcd")).tolist() == [True, False, False, True]
    assert report.retrieved(drawn, images, list("abbd")).tolist() == [True, True, False, True]


def test_the_regression_is_least_squares(tiny, monkeypatch):
    """Of image embeddings that are a linear function of the texts' it finds that function."""
    torch.manual_seed(0)
    texts, weights = torch.randn(300, 8), torch.randn(9, 8)
    images = torch.cat([texts, torch.ones(300, 1)], 1) @ weights
    monkeypatch.setattr(report, "LEARNED_FROM", 300)
    monkeypatch.setattr(report, "embed", lambda *_: (["x"] * 300, images))
    monkeypatch.setattr(report, "encode_in_batches", lambda *_: texts)
    predict = report.fit_regression(tiny, SceneSource("scenes-one"))
    torch.testing.assert_close(predict(texts), images, atol=0.01, rtol=0.01)


def test_every_prior_has_its_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "LEARNED_FROM", 40)
    folder = saved(tmp_path / "run", settings())
    request = TrainUnclip(Training("scenes-one", size=32), clip="clip")
    write_json(folder / "run.json", {"recipe": "unclip", "request": to_json(request)})
    words = ["evaluate", str(folder), "--prompts", "12", "--pictures", "2", "--json"]
    assert command(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["priors"]) == ["none", "linear", "autoregressive", "diffusion"]
    names = {
        "cosine_true", "cosine_shuffled", "cosine_text", "retrieval_at_1", "diversity",
        "milliseconds", "whole_nearest", "whole_nearest_caption",
    }  # fmt: skip
    for name, row in figures["priors"].items():
        assert set(row) == names
        assert all(f["low"] <= f["value"] <= f["high"] for f in row.values()), name
        assert (row["diversity"]["value"] > 2e-6) == (name in ("autoregressive", "diffusion"))
    assert figures["priors"]["none"]["cosine_text"]["value"] == pytest.approx(1, abs=1e-5)
    assert figures["priors"]["linear"]["cosine_true"]["value"] > 0.5
    page = (folder / "evaluation" / "priors.md").read_text()
    assert "| diffusion |" in page and "12 held-out captions" in page
    assert 0 <= figures["true_embeddings"]["whole_nearest"]["value"] <= 1


def test_a_part_alone_is_not_compared(tmp_path, tiny):
    stranger = replace(tiny, model=tiny.model.prior)
    run = type("Run", (), {"loaded": stranger, "run": tmp_path})()
    with pytest.raises(ValueError, match="is a part of a DALL-E 2"):
        next(report.evaluate(None, run))

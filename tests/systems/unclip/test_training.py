"""Training of the parts, and of the chain of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tests.train.test_loop import same
from triptych.cli.main import run as command
from triptych.data.scene_source import SceneSource
from triptych.fields import to_json
from triptych.loading import load
from triptych.requests import (
    Towers,
    TrainClip,
    Training,
    TrainUnclip,
    TrainUnclipAutoregressive,
    TrainUnclipDecoder,
    TrainUnclipPrior,
    TrainUnclipUpsampler,
    UnclipPictures,
)
from triptych.running import run
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.two_towers.request import CLIP_PRESETS
from triptych.systems.unclip.presets import PRESETS
from triptych.systems.unclip.training.embedding_cache import EmbeddingCache
from triptych.systems.unclip.training.frozen_clip import FrozenClip
from triptych.systems.unclip.training.prior_recipe import compare, warn_if_unrelated
from triptych.text.tokenizer import train_tokenizer
from triptych.train import checkpoint
from triptych.train.loop import fit
from triptych.training import build, stored, train
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card


def write_eight(path: Path) -> Path:
    """Eight handwritten digits, the same for training and test."""
    digits = load_digits()
    rows = [int(np.flatnonzero(digits.target == k)[0]) for k in range(8)]
    x, y = (digits.images[rows] * (255 / 16)).astype(np.uint8), digits.target[rows]
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    return write_eight(tmp_path_factory.mktemp("eight") / "eight.npz")


def write_clip(folder: Path, seed: int = 0, dim: int = 12) -> Path:
    """A random CLIP of pictures of 8 pixels, as a run folder."""
    folder.mkdir(parents=True)
    words = train_tokenizer([f"a photo of a {k}." for k in range(10)] * 4, 530, 12)
    config = ClipConfig(
        dim, VitConfig(8, 4, 16, 1, 2, 32), None,
        TextConfig(words.vocabulary, 12, 16, 1, 2, 32, end=words.config.end),
    )  # fmt: skip
    torch.manual_seed(seed)
    transform = ImageTransform(8, HALF, HALF)
    card = Card("clip", to_json(config), tokenizer=words.config, transform=transform)
    words.save(folder)
    checkpoint.export(folder, Clip(config), to_json(card))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clip") / "run"))


UNET = {"widths": (8, 16), "time_width": 16, "groups": 4, "sampling_steps": 2}
PARTS = {
    "prior": TrainUnclipPrior(width=16, layers=1, heads=2, sampling_steps=2),
    "codes": TrainUnclipAutoregressive(width=16, layers=1, heads=2, buckets=8, nearness=4),
    "decoder": TrainUnclipDecoder(context=8, attention=(1,), head_width=8, **UNET),
    "blurred": TrainUnclipUpsampler(small=4, crop=8, **UNET),
    "hard": TrainUnclipUpsampler(
        small=4, crop=4, degradation="hard", noise_schedule="linear", **UNET
    ),
}


def request_of(name: str, eight: Path, clip: str, cache: Path, **training):
    settings = Training(str(eight), batch_size=8, sample_every=0, device="cpu", **training)
    part = dataclasses.replace(PARTS[name], training=settings)
    if isinstance(part, TrainUnclipPrior | TrainUnclipAutoregressive):
        part = dataclasses.replace(part, cache=str(cache))
    return part if isinstance(part, TrainUnclipUpsampler) else dataclasses.replace(part, clip=clip)


@pytest.mark.parametrize("name", ["prior", "codes", "decoder", "hard"])
def test_three_steps_and_three_more_are_six(eight, clip, tmp_path, name):
    request = request_of(
        name, eight, clip, tmp_path, steps=6, save_every=3, log_every=2, ema_halflife=3
    )
    for _ in fit(build(request), request.training, tmp_path / "whole"):
        pass
    steps = fit(build(request), request.training, tmp_path / "broken")
    next(report for report in steps if report.step == 3)
    steps.close()
    assert [r.step for r in fit(build(request), request.training, tmp_path / "broken")] == [4, 5, 6]
    same(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("name", ["prior", "codes", "decoder", "blurred"])
def test_eight_pictures_are_learned_by_heart(eight, clip, tmp_path, name):
    request = request_of(name, eight, clip, tmp_path, steps=24, log_every=8)
    request = dataclasses.replace(request, learning_rate=5e-3)
    if name == "decoder":  # all timesteps count the same, so that the loss is less of a few
        request = dataclasses.replace(request, noisiest=1.0)
    rows = [r.row for r in fit(build(request), request.training, tmp_path / "run") if r.row]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"], rows
    if name == "prior":
        assert rows[-1]["cosine_true"] > rows[-1]["cosine_shuffled"], rows


def test_embeddings_are_computed_once_and_normalised_by_their_statistics(eight, clip, tmp_path):
    request = request_of("prior", eight, clip, tmp_path / "cache", steps=1)
    recipe = build(request)
    for _ in recipe.prepare():
        pass
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    embeddings = load_file(file)["embeddings"]
    loaded = load(clip, dtype="float32")
    x = np.load(eight)["x_train"][..., None].repeat(3, 3)
    torch.testing.assert_close(embeddings, loaded.embed_image(list(x)), atol=1e-5, rtol=1e-4)
    normal = recipe.model.normalise(embeddings)
    torch.testing.assert_close(normal.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(12), atol=1e-5, rtol=0)
    scaled = build(dataclasses.replace(request, normalise="scale"))
    next(scaled.batches(0))
    normal = scaled.model.normalise(embeddings)
    assert float(normal.square().mean()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(normal * scaled.model.std[0], embeddings)
    before = file.stat().st_mtime_ns
    next(build(request).batches(0))
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:-7])  # damaged: computed again
    next(build(request).batches(0))
    torch.testing.assert_close(load_file(file)["embeddings"], embeddings)


def test_a_decoder_reads_numbers_of_unit_size(eight, clip, tmp_path):
    """Embeddings of unit length are scaled for it."""
    recipe = build(request_of("decoder", eight, clip, tmp_path, steps=1))
    image = load(clip, dtype="float32").embed_image(
        list(np.load(eight)["x_train"][..., None].repeat(3, 3))
    )
    read = image * recipe.model.config.embedding_scale
    assert float(read.square().mean()) == pytest.approx(1, abs=1e-5)


def test_a_decoder_s_loss_has_the_weights_of_the_request(eight, clip, tmp_path):
    request = request_of("decoder", eight, clip, tmp_path, steps=1)
    losses = []
    for noisiest in (1.0, request.noisiest):
        recipe = build(dataclasses.replace(request, noisiest=noisiest))
        batch = next(recipe.batches(0))
        torch.manual_seed(0)
        losses.append(recipe.updates[0].objective(batch, 0))
    assert losses[0].terms["mse"] == losses[1].terms["mse"]
    assert losses[1].total.item() < 0.9 * losses[0].total.item()


def test_the_health_of_a_prior_is_said():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    exact = compare(2 * image, image, text)
    assert exact["cosine_true"] == pytest.approx(1)
    assert exact["cosine_shuffled"] == pytest.approx(exact["cosine_unrelated"])
    assert exact["cosine_text"] == pytest.approx(float((image * text).sum(1).mean()))
    assert not warn_if_unrelated(exact | {"step": 1}) and not warn_if_unrelated({"step": 1})
    mean = compare(image.mean(0).expand(4, -1), image, text)
    assert "hardly nearer" in warn_if_unrelated(mean)


CHAIN = TrainUnclip(
    Training(size=8, batch_size=8, steps=2, save_every=1, device="cpu", sample_every=0),
    sizes=(16,), clip_steps=2, prior_steps=2, upsampler_steps=2,
)  # fmt: skip


def chain_of(eight: Path, **changes) -> TrainUnclip:
    training = dataclasses.replace(CHAIN.training, data=str(eight))
    return dataclasses.replace(CHAIN, training=training, **changes)


def shrink_presets(patch: pytest.MonkeyPatch) -> None:
    """The chain trains the default presets: here those of a few thousand weights."""
    for recipe, preset, part in (
        ("unclip-prior", "tiny", "prior"), ("unclip-decoder", "tiny", "decoder"),
        ("unclip-autoregressive", "tiny", "codes"),
        ("unclip-upsampler", "x2", "blurred"),
    ):  # fmt: skip
        patch.setitem(PRESETS[recipe], preset, PARTS[part])
    towers = Towers(
        patch=4, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2,
        length=16, vocabulary=520,
    )  # fmt: skip
    patch.setitem(CLIP_PRESETS, "tiny", TrainClip(Training(batch_size=8), towers, dim=12))


@pytest.fixture(scope="module", autouse=True)
def small_presets():
    with pytest.MonkeyPatch.context() as patch:
        shrink_presets(patch)
        yield


@pytest.fixture(scope="module")
def whole(eight, tmp_path_factory, small_presets) -> Path:
    """A chain that was never disturbed."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    assert len(list(train(chain_of(eight), folder))) == 10
    return folder


def test_a_chain_makes_a_model_that_draws(whole):
    parts = ["autoregressive", "clip", "decoder", "prior", "upsampler-1"]
    assert sorted(p.parent.name for p in whole.glob("*/config.json")) == parts
    loaded = load(str(whole))
    assert (loaded.config.size, loaded.config.decoder.size, loaded.config.unit) == (16, 8, True)
    assert 1 <= loaded.config.components <= 8
    for prior in ("diffusion", "autoregressive"):
        request = UnclipPictures("a 3", prior=prior, seed=1, steps=2, upsampler_steps=2)
        *_, last = run(request, loaded)
        assert last.pictures.shape == (1, 16, 16, 1)
    part = load_file(whole / "decoder" / "model.safetensors")["unet.conv_in.weight"]
    assert torch.equal(loaded.model.decoder.unet.conv_in.weight, part)


def test_a_chain_that_is_stopped_anywhere_ends_the_same(eight, whole, tmp_path):
    """Closed after every single step of every part."""
    request, folder = chain_of(eight), tmp_path / "run"
    for _ in range(9):
        reports = train(request, folder)
        next(reports)
        reports.close()
        with pytest.raises(ValueError, match=r"no config\.json yet, only the parts .*clip.*: `tri"):
            load(str(folder))
    assert len(list(train(request, folder))) == 1
    mine, theirs = (load_file(each / "model.safetensors") for each in (folder, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert list(train(request, folder)) == []  # nothing is left to do


def test_a_part_may_be_replaced_but_not_its_clip(eight, whole, tmp_path):
    """Another decoder on the same CLIP is taken as it is; a part of another CLIP is refused, and
    nothing is lost.
    """
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "decoder")
    other = request_of("decoder", eight, str(whole / "clip"), tmp_path, steps=1)
    list(train(dataclasses.replace(other, context=4), folder / "decoder"))
    list(train(chain_of(eight), folder))
    assert load(str(folder)).config.decoder.context == 4
    before = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "upsampler-1")
    for stranger in (write_clip(tmp_path / "other", seed=5), write_clip(tmp_path / "wide", dim=20)):
        with pytest.raises(ValueError, match=f"on another CLIP than {stranger.name}: remove the"):
            next(train(chain_of(eight, clip=str(stranger)), folder))
    assert (folder / "model.safetensors").read_bytes() == before
    assert not (folder / "upsampler-1").exists()  # nothing was trained before it was seen
    assert stored(folder) == chain_of(eight)


def test_the_command_shows_the_parts(eight, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert command(["train", "unclip", "--resume", "--run", str(folder)]) == 0
    said = capsys.readouterr().err
    assert "part 2 of 5, prior: " in said and "is finished" in said and "next:" in said
    assert "requested" not in said  # though the folder was moved
    words = ["train", "unclip", "--resume", "--run", str(folder), "--upsampler-steps", "5"]
    assert command(words) == 0  # what is not as requested is said
    said = capsys.readouterr().err
    assert "  training.steps: 2 there, 5 requested" in said and "remove " in said
    assert json.loads((folder / "config.json").read_text())["model"] == "unclip"


def test_a_prior_that_cannot_be_trained_says_why(eight, whole, clip, tmp_path):
    request = request_of("prior", eight, "", tmp_path, steps=1)
    with pytest.raises(ValueError, match="give the CLIP to train on"):
        build(request)
    with pytest.raises(ValueError, match="is no CLIP with a vision and a text transformer"):
        build(dataclasses.replace(request, clip=str(whole / "decoder")))
    frozen = FrozenClip(clip, load, torch.device("cpu"))
    with pytest.raises(ValueError, match="is endless: limit it"):
        EmbeddingCache("", SceneSource("scenes-one"), frozen)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sizes": (48,)}, "whole multiple of the one before: 48 after 32"),
        ({"sizes": (64, 64)}, "64 after 64"),
        ({"prior_steps": 0}, "prior_steps must be at least 1"),
        ({"training": Training()}, "size is the side"),
    ],
)
def test_a_chain_says_what_is_wrong_with_it(fields, why):
    with pytest.raises(ValueError, match=why):
        TrainUnclip(**fields)

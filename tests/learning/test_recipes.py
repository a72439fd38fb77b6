"""Every recipe learns eight pictures by heart in seconds, and resumes exactly."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tests.train.test_loop import same
from triptych import runtime
from triptych.diffusion.noise import PictureNoise
from triptych.loading import load
from triptych.requests import (
    Answers,
    Towers,
    TrainAutoencoder,
    TrainClassifier,
    TrainClip,
    TrainCvae,
    Training,
    TrainPali,
    TrainPixelDiffusion,
    TrainRequest,
    TrainSiglip,
    TrainTextToImage,
    TrainVlm,
    TrainWgan,
    TrainWordSpace,
)
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.clip.model import TextConfig
from triptych.systems.cvae import model as cvae
from triptych.systems.pixel_diffusion import model as pixel_diffusion
from triptych.systems.stable_diffusion import recipe as text_to_image
from triptych.systems.stable_diffusion.draw_prompts import draw_prompts
from triptych.systems.wgan import model as wgan
from triptych.train.loop import fit
from triptych.training import build
from triptych.vision.images import save_picture


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight handwritten digits, one of each class from 0 to 7, the same for training and test."""
    digits = load_digits()
    rows = [int(np.flatnonzero(digits.target == k)[0]) for k in range(8)]
    x = (digits.images[rows] * (255 / 16)).astype(np.uint8)
    y = digits.target[rows]
    path = tmp_path_factory.mktemp("eight") / "eight.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vector of ten numbers for the name of each digit."""
    path = tmp_path_factory.mktemp("words") / "words.npz"
    vectors = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    np.savez(path, words=np.array([str(k) for k in range(8)]), vectors=vectors)
    return path


def settings(data: Path, steps: int, **more) -> Training:
    return Training(data=str(data), steps=steps, batch_size=8, sample_every=0, device="cpu", **more)


TINY = Towers(
    patch=4, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2, length=16,
    vocabulary=520,
)  # fmt: skip

SMALL = {
    "patch": 2, "text_width": 16, "text_layers": 1, "text_heads": 2, "length": 16,
    "vocabulary": 520,
    "widths": (16, 16), "transformers": (0, 1), "head_width": 8, "groups": 4,
}  # fmt: skip

REQUESTS: list[TrainRequest] = [
    TrainCvae(widths=(16, 32), latent=4),
    TrainCvae(widths=(16,), latent=4, network="mlp", condition="none", likelihood="gaussian"),
    TrainCvae(widths=(16, 32), latent=4, condition="quadrants", learned_prior=True, kl_warmup=4),
    TrainWgan(generator_widths=(16, 8), critic_widths=(8, 16), latent=4, critic_data="same"),
    TrainWgan(
        generator_widths=(16,),
        critic_widths=(8,),
        latent=4,
        critic="projection",
        generator_hidden=(12,),
        critic_hidden=(8,),
        generator="norms",
    ),
    TrainClassifier(widths=(8, 16), shift=1),
    TrainPixelDiffusion(widths=(8, 16), attention=(1,), head_width=8, groups=4, dropout=0.1),
    TrainPixelDiffusion(
        widths=(8,), attention=(), head_width=8, groups=4, condition="none", offset=0.1,
        noise_schedule="cosine", predicts="velocity", min_snr=5.0,
    ),
    TrainClip(towers=TINY, dim=8),
    TrainClip(
        towers=dataclasses.replace(
            TINY, stem=(8, 8), patch_dropout=0.5, gradient_cache=3, text="words", crop=0.5,
            colour=0.2,
        ),
        pool="mean",
    ),
    TrainClip(towers=dataclasses.replace(TINY, text_pool="mean", text_layers=0), dim=8),
    TrainSiglip(towers=dataclasses.replace(TINY, flip=True, templates="simple")),
    TrainWordSpace(widths=(8, 16), hidden=12, unseen="3,5", shift=1),
    TrainWordSpace(widths=(8, 16), method="devise", unseen="3", fine_tune=0.5),
    TrainAutoencoder(widths=(8, 16), groups=4, kl=1e-2),
    TrainAutoencoder(
        widths=(8, 8), groups=4, attention=True, likelihood="gaussian", adversarial=0.5,
        adversarial_from=2, discriminator_widths=(8,), optimizer="muon",
    ),
    TrainTextToImage(**SMALL),
    TrainTextToImage(
        **SMALL, predicts="sample", loss_space="flow", offset=0.1, templates="simple", drop=0.5
    ),
    TrainTextToImage(**SMALL, noise_schedule="scaled_linear", predicts="noise", min_snr=5.0),
    TrainTextToImage(**SMALL | {"text_layers": 0}, text_pool="mean", conditioning="scale_shift"),
    TrainTextToImage(**SMALL, optimizer="muon"),
    TrainPali(
        answers=Answers(
            patch=4, stem=(8, 8), image_width=16, image_layers=1, image_heads=2, vocabulary=330
        ),
        width=16, layers=1, decoder_layers=1, heads=2, head_width=8, hidden=32,
    ),
    TrainVlm(
        answers=Answers(
            patch=4, stem=(8, 8), image_width=16, image_layers=1, image_heads=2, vocabulary=330
        ),
        width=16, layers=2, heads=2, head_width=8, hidden=32,
    ),
]  # fmt: skip


BY_DAY = {2, 3, 5, 7, 9, 11, 12, 15, 18, 21, 22}
"""One of each recipe, with the settings that have most to remember."""


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(each, id=str(place), marks=() if place in BY_DAY else pytest.mark.slow)
        for place, each in enumerate(REQUESTS)
    ],
)
def test_two_steps_and_two_more_are_four(eight, words, tmp_path: Path, request_) -> None:
    training = settings(eight, 4, save_every=2, log_every=2, ema_halflife=3, warmup=2)
    training = dataclasses.replace(training, schedule="cosine", accumulate=2)
    request_ = dataclasses.replace(request_, training=training)
    if isinstance(request_, TrainWordSpace):
        request_ = dataclasses.replace(request_, words=str(words))
    for _ in fit(build(request_), training, tmp_path / "whole"):
        pass
    steps = fit(build(request_), training, tmp_path / "broken")
    next(report for report in steps if report.step == 2)
    steps.close()
    assert [r.step for r in fit(build(request_), training, tmp_path / "broken")] == [3, 4]
    same(tmp_path / "whole", tmp_path / "broken")


REPRESENTATIVE = {type(request).__name__: request for request in REQUESTS}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_batch_larger_than_the_data_is_said(eight, words, name: str) -> None:
    request_ = REPRESENTATIVE[name]
    if isinstance(request_, TrainWordSpace):
        request_ = dataclasses.replace(request_, words=str(words))
    for size, said in ((5, False), (9, True)):
        training = dataclasses.replace(settings(eight, 1), batch_size=size)
        notes = build(dataclasses.replace(request_, training=training)).notes
        assert any("a batch of 9 is larger" in note for note in notes) == said


def folder_of_pictures(root: Path, names: str, captions: bool = False) -> str:
    for place, name in enumerate(names):
        for number in range(4):
            path = root / (name if not captions else "all") / f"{place}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(path, np.full((8, 8, 1), 20 * place + number, np.uint8))
            if captions:
                path.with_suffix(".txt").write_text(f"picture {place}")
    return str(root)


@pytest.mark.parametrize(
    ("data", "first", "said"),
    [
        ("captions", "classes", "'captions' has captions and 'classes' has none"),
        ("classes", "captions", "'captions' has captions and 'classes' has none"),
        ("classes", "others", "must have the same classes"),
        ("captions", "scenes", "choose one size"),
    ],
)
def test_easier_data_that_do_not_fit_are_refused(tmp_path, data, first, said) -> None:
    """Not at the step where the data change, hours later."""
    made = {
        "captions": folder_of_pictures(tmp_path / "captions", "ab", captions=True),
        "classes": folder_of_pictures(tmp_path / "classes", "ab"),
        "others": folder_of_pictures(tmp_path / "others", "abc"),
        "scenes": "scenes-one",
    }
    training = settings(tmp_path, 4)
    training = dataclasses.replace(training, data=made[data])
    request_ = TrainTextToImage(training, **SMALL, first=made[first], first_steps=2)
    with pytest.raises(ValueError, match=said):
        build(request_)


def test_cvae_learns_eight_pictures_by_heart(eight: Path, tmp_path: Path) -> None:
    training = settings(eight, 420, ema_halflife=10, log_every=50)
    request = TrainCvae(training, widths=(32, 128), latent=2, learning_rate=3e-3, beta=0.1)
    recipe = build(request)
    for _ in fit(recipe, training, tmp_path):
        pass
    loaded = load(str(tmp_path))
    batch = next(recipe.batches(0))
    drawn = cvae.sample(loaded.model, batch["label"], torch.zeros(8, 2))
    assert (drawn - batch["image"]).abs().mean() < 0.05  # [-1, 1]; an untrained model is at 0.7


def test_wgan_learns_eight_pictures_by_heart(eight: Path, tmp_path: Path) -> None:
    """Eight classes of one picture each: every sample must be its class's picture."""
    training = settings(eight, 180, ema_halflife=20, log_every=50)
    widths = {"generator_widths": (32,), "critic_widths": (32,)}
    rates = {"learning_rate": 2e-3, "critic_learning_rate": 2e-3}
    recipe = build(TrainWgan(training, latent=2, **widths, **rates))
    for _ in fit(recipe, training, tmp_path):
        pass
    loaded = load(str(tmp_path))
    batch = next(recipe.batches(0))
    drawn = wgan.sample(loaded.model, batch["label"], runtime.noise((2,), range(8)))
    distances = torch.cdist(drawn.flatten(1), batch["image"].flatten(1))
    assert distances.argmin(1).tolist() == list(range(8))
    assert (drawn - batch["image"]).abs().mean() < 0.15


def test_pixel_diffusion_learns_eight_pictures_by_heart(eight: Path, tmp_path: Path) -> None:
    """Every sample must be its class's picture, whatever the noise; guidance is off."""
    training = settings(eight, 250, ema_halflife=20, log_every=50, schedule="cosine")
    widths = {"widths": (32,), "attention": (0,), "head_width": 16, "groups": 8, "patch": 2}
    request = TrainPixelDiffusion(training, **widths, drop=0.0, guidance=1.0, learning_rate=3e-3)
    recipe = build(request)
    for _ in fit(recipe, training, tmp_path):
        pass
    loaded = load(str(tmp_path))
    batch = next(recipe.batches(0))
    noise = PictureNoise(range(8))
    *_, last = pixel_diffusion.sample(loaded.model, batch["label"], noise, steps=12)
    distances = torch.cdist(last.x.flatten(1), batch["image"].flatten(1))
    assert distances.argmin(1).tolist() == list(range(8))
    assert (last.x - batch["image"]).abs().mean() < 0.1


@pytest.fixture(scope="module")
def latents_of_eight(eight: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that knows the eight pictures by heart."""
    path = tmp_path_factory.mktemp("autoencoder") / "run"
    training = settings(eight, 220, ema_halflife=10, log_every=50)
    request = TrainAutoencoder(training, widths=(16, 32), groups=4, learning_rate=3e-3, kl=1e-3)
    for _ in fit(build(request), training, path):
        pass
    return path


def test_autoencoder_learns_eight_pictures_by_heart(eight: Path, latents_of_eight: Path) -> None:
    """Half the side, and out of training its latents have a deviation of 1."""
    autoencoder = load(str(latents_of_eight)).model
    assert isinstance(autoencoder, Autoencoder)
    image = next(build(TrainAutoencoder(settings(eight, 1))).batches(0))["image"]
    with torch.inference_mode():
        latents = autoencoder.encode(image)
        assert latents.shape == (8, 4, 4, 4)
        assert latents.std().item() == pytest.approx(1, abs=0.05)
        assert (autoencoder.decode(latents) - image).abs().mean() < 0.06


@pytest.mark.parametrize(
    "where",
    [
        "latents, bag of words, muon",
        *[pytest.param(w, marks=pytest.mark.slow) for w in ("pixels", "latents", "words", "muon")],
    ],
)
def test_text_to_image_learns_eight_pictures_by_heart(
    eight: Path, latents_of_eight: Path, tmp_path: Path, where: str
) -> None:
    """The name of a class draws the picture of that class, whatever the noise."""
    steps = 160 if "words, muon" in where else 400
    training = settings(eight, steps, ema_halflife=20, log_every=100, schedule="cosine")
    request = TrainTextToImage(
        training,
        **SMALL | {"widths": (32,), "transformers": (1,), "text_width": 32},
        autoencoder=str(latents_of_eight) if "latents" in where else "",
        predicts="sample",
        loss_space="flow",
        templates="name",
        drop=0.0,
        learning_rate=3e-3,
    )
    if "words" in where:
        request = dataclasses.replace(request, text_layers=0, text_pool="mean")
    if "muon" in where:
        request = dataclasses.replace(request, optimizer="muon", matrix_rate=0.02)
    recipe = build(request)
    for _ in fit(recipe, training, tmp_path):
        pass
    loaded = load(str(tmp_path), dtype="float32")
    batch = next(recipe.batches(0))
    prompts = [str(label) for label in batch["label"].tolist()]
    pictures = draw_prompts(loaded.model, loaded.tokenizers, prompts, guidance=1.0)
    found = torch.from_numpy(pictures[..., 0]).float() / 127.5 - 1
    distances = torch.cdist(found.flatten(1), batch["image"].flatten(1))
    assert distances.argmin(1).tolist() == list(range(8))
    assert (found - batch["image"][:, 0]).abs().mean() < 0.15


def test_the_likeliest_latents_are_learned_where_they_are_asked_for(
    eight: Path, latents_of_eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(text_to_image, "objective", lambda learner, z, *_, **__: seen.append(z))
    small = SMALL | {"widths": (32,), "transformers": (1,), "autoencoder": str(latents_of_eight)}
    for chosen in ("likeliest", "drawn"):
        recipe = build(TrainTextToImage(settings(eight, 1), **small, latents=chosen))
        batch = next(recipe.batches(0))
        recipe.updates[0].objective(batch, 1)
    autoencoder = load(str(latents_of_eight)).model
    assert isinstance(autoencoder, Autoencoder)
    with torch.inference_mode():
        likeliest = autoencoder.encode(batch["image"])
    torch.testing.assert_close(seen[0], likeliest)
    assert (seen[1] - likeliest).abs().max() > 1e-3


def test_towers_that_could_not_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must use pool .mean."):
        TextConfig(layers=0)
    for changes in ({"text_pool": "mean"}, {"text_layers": 0}):
        with pytest.raises(ValueError, match="text_pool is CLIP's"):
            TrainSiglip(towers=dataclasses.replace(TINY, **changes))


def test_classifier_learns_eight_pictures_by_heart(eight: Path, tmp_path: Path) -> None:
    training = settings(eight, 60, log_every=20)
    for report in fit(build(TrainClassifier(training, widths=(16, 32))), training, tmp_path):
        last = report
    assert last.row is not None and last.row["accuracy"] == 1.0
    assert last.row["test_accuracy"] == 1.0


def test_clip_and_siglip_tell_eight_pictures_apart(eight: Path, tmp_path: Path) -> None:
    """Each picture finds its class among ten, and each sentence its picture; then low-rank updates
    of a locked tower go on from there, and what is exported is half of the way.
    """
    towers = dataclasses.replace(TINY, learning_rate=3e-3, width=32, layers=2)
    for request in (TrainClip(towers=towers, dim=16), TrainSiglip(towers=towers)):
        training = settings(eight, 120, log_every=40, ema_halflife=5, warmup=10)
        request = dataclasses.replace(request, training=training)
        run = tmp_path / type(request).__name__
        *_, last = fit(build(request), training, run)
        assert last.row is not None and last.row["zero_shot"] == 1.0
        loaded = load(str(run), dtype="float32")
        assert loaded.tokenizer is not None and loaded.transform is not None
        digits = np.load(eight)["x_test"][..., None]
        pictures = loaded.embed_image(list(digits))
        texts = loaded.embed_text([f"a photo of a {k}." for k in range(10)])
        torch.testing.assert_close(pictures.norm(dim=1), torch.ones(8))
        assert (pictures @ texts.T).argmax(1).tolist() == list(range(8))

    tuned = dataclasses.replace(
        request,
        training=settings(eight, 5, log_every=1),
        towers=dataclasses.replace(
            towers, init=str(run), lora=2, lock="text", interpolate=0.5, learning_rate=1e-2
        ),
    )
    *_, last = fit(build(tuned), tuned.training, tmp_path / "tuned")
    before, after = load(str(run), dtype="float32"), load(str(tmp_path / "tuned"), dtype="float32")
    differing = {
        name
        for name, tensor in before.model.state_dict().items()
        if not torch.equal(tensor, after.model.state_dict()[name])
    } - {"logit_scale", "logit_bias"}  # how sure to be is learned all the same
    assert differing and all(name.startswith("image.") for name in differing)
    assert {name.split(".")[-2] for name in differing} == {"q_proj", "v_proj", "up", "down"}


@pytest.mark.parametrize("method", ["socher", "devise"])
def test_word_space_learns_eight_pictures_by_heart(eight, words, tmp_path: Path, method) -> None:
    """Six of them: the other two are never shown, and the word of each seen one is its nearest."""
    training = settings(eight, 150, log_every=50, ema_halflife=5)
    request = TrainWordSpace(training, str(words), "6,7", method, widths=(16, 32))
    recipe = build(request)
    labels = torch.cat([next(recipe.batches(k))["label"] for k in range(3)])
    assert set(labels.tolist()) == set(range(6))
    for report in fit(recipe, training, tmp_path):
        last = report
    assert last.row is not None and last.row["test_seen"] == 1.0
    loaded = load(str(tmp_path))
    assert loaded.card.classes == tuple(map(str, range(8)))
    image = next(recipe.batches(0))["image"]
    label = next(recipe.batches(0))["label"]
    mapped = loaded.model.embed(image)
    assert torch.equal(loaded.model.scores(mapped)[:, :6].argmax(1), label)
    if method == "socher":  # each lies at its own word: the squared length of a word is 10
        assert (mapped - loaded.model.words[label]).square().sum(1).max() < 0.5
        # the detectors travel with the weights
        assert torch.equal(loaded.model.probabilities(image, threshold=1.0).argmax(1), label)

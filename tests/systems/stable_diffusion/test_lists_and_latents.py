"""Lists of prompts in one request, noise that is given, and latents that come back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import triptych
from tests.parity.pipelines import psnr
from tests.systems.stable_diffusion.test_pipeline import drawn, lora_file, pictures
from tests.systems.stable_diffusion.tiny_stable_diffusion import loaded
from triptych import runtime
from triptych.diffusion.noise import philox_normal
from triptych.fields import from_json, to_json
from triptych.requests import TextToImage
from triptych.systems.stable_diffusion import pipeline as text_to_image
from triptych.vision.images import save_picture, to_pictures

LONG = " ".join(["a red cat"] * 6)  # two windows of the tiny text tower
PROMPTS = ["a red cat", LONG, "a blue dog"]
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def tiny():
    return loaded()


@pytest.mark.parametrize("negative", ["", "a dog", ["a dog", "", "a mat"]])
def test_pictures_of_a_list_are_those_of_each_prompt(tiny, negative) -> None:
    """Picture i has the seed 3 + i, and the record of its prompt alone."""
    many = drawn(tiny, prompt=PROMPTS, negative=negative, n=2, steps=1, deterministic=True)
    assert len(many.pictures) == len(many.images) == 6
    for i in range(6):
        one = many.request_of(i)
        own = negative if isinstance(negative, str) else negative[i // 2]
        assert (one.prompt, one.negative, one.seed, one.n) == (PROMPTS[i // 2], own, 3 + i, 1)
        *_, alone = triptych.run(from_json(TextToImage, to_json(one)), tiny)
        assert (alone.pictures[0] == many.pictures[i]).all()


def test_prompts_are_drawn_in_one_batch_where_they_have_equally_many_windows(
    tiny, monkeypatch
) -> None:
    sizes = []
    original = text_to_image.prepare_start

    def counting(model, noise, *others, **more):
        sizes.append(len(noise.streams))
        return original(model, noise, *others, **more)

    monkeypatch.setattr(text_to_image, "prepare_start", counting)
    many = drawn(tiny, prompt=["a red cat", "a blue dog", LONG, "a dog"], n=2, steps=2)
    assert sizes == [4, 2, 2]
    for i in range(8):
        *_, alone = triptych.run(many.request_of(i), tiny)
        assert psnr(alone.pictures[0], many.pictures[i]) >= 60
    sizes.clear()
    changing = ["a cat", "a [red:blue:0.5] cat", "a [red:blue:0.5] dog", "a cat AND a dog", "a dog"]
    many = drawn(tiny, prompt=changing, n=2, steps=2)
    assert sizes == [2] * 5
    for i in (2, 5, 7, 9):
        *_, alone = triptych.run(many.request_of(i), tiny)
        assert psnr(alone.pictures[0], many.pictures[i]) >= 60
    sizes.clear()
    monkeypatch.setattr(text_to_image, "BATCH_PIXELS", 3 * 64 * 64)
    pictures(tiny, prompt=["a red cat", "a blue dog"], n=2)
    assert sizes == [3, 1]


def test_progress_of_a_list_rises_to_the_end(tiny) -> None:
    request = TextToImage(PROMPTS, seed=0, steps=2, precision="float32")
    done = [item.done for item in triptych.run(request, tiny)]
    assert done == sorted(done) and done[-1] == 1 and done[0] < 0.3


def test_all_prompts_of_a_request_name_the_same_loras(tiny, tmp_path: Path, monkeypatch) -> None:
    lora_file(tiny.model, tmp_path / "loras")
    monkeypatch.chdir(tmp_path)
    with_style = ["a red cat <lora:style:1>", "a blue dog <lora:style:1>"]
    many = pictures(tiny, prompt=with_style)
    assert not (many == pictures(tiny, prompt=["a red cat", "a blue dog"])).all()
    with pytest.raises(ValueError, match="name different LoRAs"):
        pictures(tiny, prompt=["a red cat <lora:style:1>", "a blue dog"])


def test_a_learned_word_of_any_prompt_is_found(tiny, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "embeddings").mkdir()
    save_file({"emb_params": torch.ones(1, 16)}, tmp_path / "embeddings" / "mine.safetensors")
    plain = pictures(tiny, prompt=["a red cat", "a mine"])
    monkeypatch.chdir(tmp_path)
    learned = drawn(tiny, prompt=["a red cat", "a mine"])
    assert any("mine" in note for note in learned.notes)
    assert psnr(learned.pictures[1], plain[1]) < 40


# Latents


@pytest.mark.parametrize("source", ["cpu", "philox"])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_given_noise_of_a_seed_is_the_seed(tiny, sampler: str, source: str) -> None:
    """To the bit, also where the sampler draws more noise: it stays that of the seed."""
    seeds = [3, 4]
    if source == "cpu":
        noise = runtime.noise(SHAPE, seeds)
    else:
        noise = torch.stack([philox_normal(seed, 0, SHAPE) for seed in seeds])
    fields = {"sampler": sampler, "n": 2, "noise_source": source}
    expected = drawn(tiny, **fields)
    given = drawn(tiny, **fields, latents=noise)
    assert (given.pictures == expected.pictures).all()
    assert torch.equal(given.latents, expected.latents)
    other = pictures(tiny, **fields, latents=noise.flip(0))
    assert psnr(other, expected.pictures) < 40


@pytest.mark.parametrize("mask", [None, np.eye(64) > 0])
def test_given_noise_of_a_seed_is_the_seed_from_a_picture(tiny, mask) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    fields = {"image": image, "mask": mask, "strength": 0.6}
    streams = [runtime.generator(3)]
    torch.randn(SHAPE, generator=streams[0])  # of the posterior of the picture, drawn first
    noise = torch.randn(SHAPE, generator=streams[0])
    expected = pictures(tiny, **fields)
    assert (pictures(tiny, **fields, latents=noise) == expected).all()
    assert not (pictures(tiny, **fields, latents=-noise) == expected).all()


def test_latents_that_come_back_are_what_was_decoded(tiny) -> None:
    result = drawn(tiny, n=3)
    assert result.latents.shape == (3, *SHAPE) and result.latents.dtype == torch.float32
    decoded = to_pictures(tiny.model.autoencoder.decode(result.latents))
    assert psnr(decoded, result.pictures) >= 60
    states = list(triptych.run(TextToImage("a cat", seed=1, steps=2), tiny))
    assert states[0].latents is None and states[-1].latents is not None


def test_latents_determine_the_size(tiny) -> None:
    drawing = drawn(tiny, latents=torch.randn(4, 9, 8, generator=runtime.generator(0)))
    assert drawing.request.size == "64x72" and drawing.pictures.shape == (1, 72, 64, 3)


def test_records_have_the_noise_of_each_picture(tiny, tmp_path: Path) -> None:
    noise = runtime.noise(SHAPE, [70, 80])
    many = drawn(tiny, prompt=["a red cat", "a blue dog"], latents=noise, deterministic=True)
    second = many.request_of(1)
    save_picture(tmp_path / "1.png", many.pictures[1], {"request": to_json(second)})
    with pytest.raises(ValueError, match=r"latents: .* in memory, 1x4x8x8, SHA-256"):
        triptych.recall(tmp_path / "1.png")
    with pytest.raises(ValueError, match="latents is another"):
        triptych.recall(tmp_path / "1.png", latents=noise[0])
    np.save(tmp_path / "noise.npy", noise[1].numpy())
    triptych.recall(tmp_path / "1.png", latents=tmp_path / "noise.npy")
    again = triptych.recall(tmp_path / "1.png", latents=noise[1], model="tiny")
    *_, alone = triptych.run(again, tiny)
    assert (alone.pictures[0] == many.pictures[1]).all()


def test_latents_of_a_file(tiny, tmp_path: Path) -> None:
    noise, file = runtime.noise(SHAPE, [3]), tmp_path / "noise.npy"
    np.save(file, noise.numpy())
    assert (pictures(tiny, latents=file) == pictures(tiny)).all()
    whole = file.read_bytes()
    for content in (whole[:100], whole[:-9], b"", b"\x93NUMPY", b"\x80\x04.", whole[6:]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"noise\.npy: not an \.npy file of numbers"):
            pictures(tiny, latents=file)
    np.save(file, np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"noise\.npy: not an \.npy file of numbers"):
        pictures(tiny, latents=file)
    with pytest.raises(ValueError, match="there is no such file"):
        pictures(tiny, latents=tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"n": 2}, (1, *SHAPE), r"shape \(1, 4, 8, 8\); this request needs \(2, 4, 8, 8\)"),
        ({}, (1, 3, 8, 8), r"needs \(1, 4, 8, 8\)"),
        ({"size": "64x64"}, (4, 8, 9), r"shape \(1, 4, 8, 9\)"),
        ({"prompt": ["a", "b"], "n": 2}, (2, *SHAPE), r"needs \(4, 4, 8, 8\)"),
        ({}, (4, 1, 1), "size is WIDTHxHEIGHT, each 16 to 4096"),
    ],
)
def test_latents_of_another_shape_are_refused(tiny, fields, shape, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pictures(tiny, **fields, latents=torch.zeros(shape))


def test_a_model_in_bfloat16_computes_in_it(tiny) -> None:
    model = loaded()
    assert model.to(torch.bfloat16) is model
    low = pictures(model, precision="auto")
    assert 20 < psnr(low, pictures(tiny, precision="float32")) < 60
    half = replace(model, model=model.model.to(torch.float16))
    with pytest.raises(ValueError, match=r"weights in torch\.float16"):
        pictures(half, precision="auto")

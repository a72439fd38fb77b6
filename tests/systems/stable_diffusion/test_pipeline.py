"""Pictures of a prompt: what a seed promises, and what every setting does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import triptych
from tests.parity.pipelines import psnr
from tests.systems.stable_diffusion.tiny_stable_diffusion import (
    UNET,
    config,
    loaded,
    saved,
    tokenizer,
)
from triptych.diffusion.noise import PictureNoise, philox_normal
from triptych.loading import load
from triptych.nn.circular import circular
from triptych.requests import TextToImage
from triptych.running import run
from triptych.systems.stable_diffusion import pipeline as text_to_image
from triptych.systems.stable_diffusion.inputs import starting_picture
from triptych.systems.stable_diffusion.inputs.encode_prompts import (
    encode_prompts,
    size_conditioning,
    uncropped,
)
from triptych.systems.stable_diffusion.inputs.starting_picture import (
    interpolate_noise,
    prepare_start,
)
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.preview import preview_of
from triptych.vision.images import open_picture, save_picture, to_pictures


@pytest.fixture(scope="module")
def tiny():
    return loaded()


def asked(**fields) -> TextToImage:
    plain = {"prompt": "a red cat", "seed": 3, "steps": 3, "precision": "float32"}
    return TextToImage(**plain | fields)


def drawn(model, **fields):
    *_, last = run(asked(**fields), model)
    return last


def pictures(model, **fields) -> np.ndarray:
    return drawn(model, **fields).pictures


def photo(folder: Path, width: int = 64, height: int = 64) -> str:
    file = folder / f"photo-{width}-{height}.png"
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    save_picture(file, pixels.astype(np.uint8))
    return str(file)


def half_mask(folder: Path, width: int = 64, height: int = 64) -> str:
    file = folder / f"mask-{width}-{height}.png"
    pixels = np.zeros((height, width, 1), np.uint8)
    pixels[:, : width // 2] = 255
    save_picture(file, pixels)
    return str(file)


LAYERS = {  # of a file, and our weight that each is for
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
        "unet.down.0.blocks.0.transformer.blocks.0.attn.q_proj.weight"
    ),
    "lora_te_text_model_encoder_layers_1_mlp_fc1": "text.0.transformer.blocks.1.mlp.up.weight",
}


def lora_file(model: StableDiffusion, folder: Path, *, name: str = "style", width: int = 0) -> str:
    """A file in kohya's form of both parts, and a layer that the model lacks."""
    random = torch.Generator().manual_seed(4)
    shapes = {"unet": (16, 16), "te": (32, 16)}
    tensors = {}
    for layer in (*LAYERS, "lora_unet_mid_block_attentions_7_proj_in"):
        out, inner = shapes["te" if "_te_" in layer else "unet"]
        inner = width or inner
        tensors[f"{layer}.lora_down.weight"] = torch.randn(2, inner, generator=random)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(out, 2, generator=random)
        tensors[f"{layer}.alpha"] = torch.tensor(1.0)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


# What a seed promises


@pytest.mark.parametrize(
    ("sampler", "least"),
    [
        ("euler", 60),
        ("euler_ancestral", 45),
        pytest.param("dpmpp_2m", 60, marks=pytest.mark.slow),
        pytest.param("dpm_adaptive", 60, marks=pytest.mark.slow),
        pytest.param("tcd", 45, marks=pytest.mark.slow),
    ],
)
def test_a_picture_does_not_depend_on_its_company(tiny, monkeypatch, sampler, least) -> None:
    monkeypatch.setattr(text_to_image, "BATCH_PIXELS", 3 * 64 * 64)  # batches of three
    many = pictures(tiny, n=5, sampler=sampler)
    for i in (0, 2, 3, 4):
        (alone,) = pictures(tiny, seed=3 + i, sampler=sampler)
        assert psnr(many[i], alone) >= least
    assert all(psnr(many[0], other) < 40 for other in many[1:])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_one_at_a_time_pictures_are_the_same_to_the_bit(tiny, sampler) -> None:
    many = pictures(tiny, n=3, sampler=sampler, deterministic=True)
    for i in range(3):
        (alone,) = pictures(tiny, seed=3 + i, sampler=sampler, deterministic=True)
        assert (many[i] == alone).all()


def test_the_request_that_comes_back_draws_the_same(tiny) -> None:
    first = drawn(tiny, seed=None, sampler="Euler a", variation_strength=0.3, n=2)
    assert first.request.seed is not None and first.request.variation_seed is not None
    assert (first.request.sampler, first.request.size) == ("euler_ancestral", "64x64")
    *_, again = run(first.request, tiny)
    assert (again.pictures == first.pictures).all()
    assert again.request == first.request


def test_what_is_not_asked_is_the_models(tiny) -> None:
    request = drawn(tiny, steps=0).request
    given = request.sampler, request.steps, request.spacing, request.guidance
    assert given == ("euler", 4, "leading", 4.0)


def test_philox_noise_is_the_start(tiny) -> None:
    model = tiny.model
    noise = PictureNoise([11], "philox")
    start = prepare_start(model, noise, None, 1.0, (64, 64))  # type: ignore[arg-type]
    assert torch.equal(start.x[0], philox_normal(11, 0, (4, 8, 8)))
    assert psnr(pictures(tiny, noise_source="philox"), pictures(tiny)) < 40


def test_variations_lie_between_two_seeds(tiny) -> None:
    """Nothing of the second seed is the first picture, all of it is the second's."""
    one, other = pictures(tiny, n=1)[0], pictures(tiny, seed=90)[0]
    at = [
        pictures(tiny, variation_seed=90, variation_strength=strength)[0]
        for strength in (1e-6, 0.1, 0.5, 1.0)
    ]
    assert psnr(at[0], one) > 60 and psnr(at[3], other) > 60
    assert psnr(at[1], one) > psnr(at[2], one) > psnr(at[3], one)


def test_of_several_variations_the_variation_seed_counts(tiny) -> None:
    many = drawn(tiny, n=2, variation_seed=50, variation_strength=0.4)
    (second,) = pictures(tiny, variation_seed=51, variation_strength=0.4)
    assert psnr(many.pictures[1], second) >= 60
    alone = [many.request_of(i) for i in range(2)]
    assert [(one.seed, one.variation_seed) for one in alone] == [(3, 50), (3, 51)]


def test_the_great_circle_in_closed_form() -> None:
    right, up = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    right[..., 0] = up[..., 1] = 2.0
    third = interpolate_noise(right, up, 1 / 3).flatten()
    assert third.tolist() == pytest.approx([3**0.5, 1.0], abs=1e-6)  # 30 degrees
    assert torch.allclose(interpolate_noise(right, right, 0.3), right)
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    between = interpolate_noise(noise[:1], noise[1:], 0.5)
    assert float(between.std()) == pytest.approx(1, abs=0.02)  # a straight line would have 0.71


# What runs step by step


def test_an_item_after_every_step_with_what_is_to_be_seen(tiny) -> None:
    items = list(run(asked(n=2, steps=4), tiny))
    assert len(items) == 4 + 1
    assert [item.done for item in items] == pytest.approx([0.25, 0.5, 0.75, 0.999, 1.0])
    assert all(tuple(item.guess.shape) == (2, 4, 8, 8) for item in items[:-1])
    assert all(len(item.pictures) == 0 for item in items[:-1])
    look = preview_of(tiny.model)
    assert look(items[0].guess).shape == (2, 8, 8, 3)


def test_the_linear_preview_undoes_a_linear_encoder(monkeypatch) -> None:
    model = loaded().model
    mixed = torch.tensor([[0.5, 0.2, -0.1], [0.1, -0.6, 0.2], [0.0, 0.3, 0.7], [0.2, 0.2, 0.2]])

    def encode(images):
        small = torch.nn.functional.avg_pool2d(images, 8)
        return torch.einsum("bchw,zc->bzhw", small, mixed) + 0.3

    monkeypatch.setattr(model.autoencoder, "encode", encode)
    image = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode(image.repeat_interleave(8, 2).repeat_interleave(8, 3))
    seen = preview_of(model)(latents)
    assert np.abs(seen.astype(int) - to_pictures(image).astype(int)).max() <= 1


def test_a_caller_that_stops_leaves_the_model_as_it_was(tiny, tmp_path) -> None:
    file = lora_file(tiny.model, tmp_path)
    before = {k: v.clone() for k, v in tiny.model.state_dict().items()}
    work = run(asked(loras=(file,)), tiny)
    next(work)
    changed = [k for k, v in tiny.model.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == 2
    work.close()
    after = tiny.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_is_read_in_the_precision_that_it_computes_in(tmp_path, precision) -> None:
    """Never in a wider one first, and in the order that convolutions want."""
    asked_for = []
    request = asked(model=str(saved(tmp_path)), precision=precision)
    model = text_to_image.load_model(
        request, lambda *given: asked_for.append(given[2]) or load(*given)
    ).model
    assert asked_for == [precision]
    for network in (model.unet, model.autoencoder):
        weights = list(network.parameters())
        assert {weight.dtype for weight in weights} == {getattr(torch, precision)}
        filters = [weight for weight in weights if weight.dim() == 4]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in filters)


def test_through_the_package(tmp_path) -> None:
    folder = saved(tmp_path / "run")
    *_, last = triptych.run(asked(model=str(folder)))
    assert last.pictures.shape == (1, 64, 64, 3)
    assert (last.pictures == pictures(load(str(folder), dtype="float32"))).all()
    in_memory = pictures(loaded()).astype(int)  # whose convolutions compute in another order
    assert np.abs(last.pictures - in_memory).max() <= 1


# Sizes


@pytest.mark.parametrize(
    "size",
    [
        "72x64",
        "64x104",
        "71x99",
        "65x64",
        "713x990",
        pytest.param("712x1024", marks=pytest.mark.slow),
    ],
)
def test_any_size_comes_back_exactly(tiny, size) -> None:
    width, height = map(int, size.split("x"))
    found = pictures(tiny, size=size, steps=1, guidance=1)
    assert found.shape == (1, height, width, 3)
    assert found.std() > 5


def test_large_pictures_are_decoded_in_tiles(tiny, monkeypatch) -> None:
    seen = []
    hook = tiny.model.autoencoder.decoder.register_forward_hook(
        lambda module, given, result: seen.append(tuple(result.shape[2:]))
    )
    monkeypatch.setattr(starting_picture, "TILE", 64)
    try:
        whole = pictures(tiny, size="128x96", steps=1)
        assert seen and max(max(side) for side in seen) == 64
        seen.clear()
        pictures(tiny, size="64x64", steps=1)
        assert seen == [(64, 64)]
    finally:
        hook.remove()
    assert whole.shape == (1, 96, 128, 3)


# Tiling


@torch.inference_mode()
def test_with_circular_convolutions_a_shift_is_only_a_shift(tiny) -> None:
    """Where edges are no edges, moving the start moves the picture and nothing else."""
    model = tiny.model
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = encode_prompts(model, tiny.tokenizers, "a cat", "", (64, 64)).cond
    time = torch.tensor([500.0])

    def both(shift):
        moved = x.roll((shift, shift), (2, 3))
        image = model.autoencoder.decode(moved)
        return model.predict(moved, time, cond), image, model.autoencoder.encode(image)

    with circular(model):
        still, moved = both(0), both(2)
    for a, b, step in zip(still, moved, (2, 16, 2), strict=True):
        assert torch.allclose(a.roll((step, step), (2, 3)), b, atol=2e-4)
    without = both(0), both(2)
    assert not torch.allclose(without[0][1].roll((16, 16), (2, 3)), without[1][1], atol=1e-2)


def test_tiling_is_for_one_request_only(tiny) -> None:
    before = pictures(tiny)
    tiled = pictures(tiny, tiling=True)
    assert psnr(tiled, before) < 40
    assert (pictures(tiny) == before).all()
    with pytest.raises(ValueError, match="multiple of 8 pixels"):
        pictures(tiny, tiling=True, size="65x64")


# Prompts


def test_a_weight_of_one_changes_nothing_and_others_do(tiny) -> None:
    plain = pictures(tiny)
    assert (pictures(tiny, prompt="a (red:1.0) cat") == plain).all()
    more, less = (pictures(tiny, prompt=f"a {word} cat") for word in ("(red:1.5)", "[red]"))
    assert psnr(more, plain) < 60 and psnr(less, plain) < 60 and psnr(more, less) < 60


def test_a_long_prompt_is_read_in_windows_and_the_other_is_padded(tiny) -> None:
    text = "a red cat, " * 8
    encoded = encode_prompts(tiny.model, tiny.tokenizers, text, "a dog", (64, 64))
    windows = encoded.cond["context"].shape[1] // 12
    assert windows > 2 and encoded.uncond["context"].shape == encoded.cond["context"].shape
    assert any(f"is split into {windows} windows" in line for line in encoded.notes)
    last = drawn(tiny, prompt=text, negative="a dog")
    assert any("windows" in line for line in last.notes)
    cut = pictures(tiny, prompt="a red cat, a red cat, a red cat")
    assert psnr(last.pictures, cut) < 40  # what is beyond the first window counts


def test_empty_windows_are_those_of_an_empty_prompt(tiny) -> None:
    encoded = encode_prompts(tiny.model, tiny.tokenizers, "a cat BREAK a dog", "", (64, 64))
    alone = encode_prompts(tiny.model, tiny.tokenizers, "a dog", "", (64, 64))
    first, second = encoded.cond["context"].split(12, dim=1)
    assert torch.equal(second, alone.cond["context"]) and not torch.equal(first, second)
    empty = encoded.uncond["context"].split(12, dim=1)
    assert torch.equal(*empty)


def test_clip_skip_reads_an_earlier_block(tiny) -> None:
    plain = pictures(tiny)
    assert (pictures(tiny, clip_skip=1) == plain).all()  # the last, as trained
    assert psnr(pictures(tiny, clip_skip=2), plain) < 60
    with pytest.raises(ValueError, match="must be 1 to 3"):
        pictures(tiny, clip_skip=4)


def test_unclosed_brackets_and_clip_skip_as_automatic1111_reads_them(tiny) -> None:
    def context(text, automatic1111):
        encoded = encode_prompts(
            tiny.model, tiny.tokenizers, text, "", (64, 64), automatic1111=automatic1111
        )
        return encoded.cond["context"]

    assert torch.equal(context("a (cat", True), context("a (cat)", True))
    assert not torch.equal(context("a (cat", False), context("a (cat)", False))
    skipped = drawn(tiny, clip_skip=2, conventions="automatic1111")  # no tower of OpenAI's
    assert any("clip_skip is ignored" in line for line in skipped.notes)
    plain = config()
    text = replace(plain.text[0].text, activation="quick_gelu")
    openai = loaded(replace(plain, text=(replace(plain.text[0], text=text),)))
    asked_for = drawn(openai, clip_skip=2, conventions="automatic1111")
    assert not asked_for.notes
    assert psnr(asked_for.pictures, pictures(openai, conventions="automatic1111")) < 60


def test_the_negative_prompt_of_no_guidance_is_not_read(tiny) -> None:
    long = "a red dog, " * 12
    assert (pictures(tiny, guidance=1, negative=long) == pictures(tiny, guidance=1)).all()


def test_each_tower_keeps_its_own_mean_of_weighted_states() -> None:
    """Two towers, the second with other states: what one says is what it says alone."""
    plain = config()
    two = (plain.text[0], plain.text[0])
    model = loaded(replace(plain, text=two, unet=replace(UNET, context=32))).model
    words = (tokenizer(),) * 2
    asked_for = ("a (red:1.6) cat", "", (64, 64))
    encoded = encode_prompts(model, words, *asked_for, automatic1111=True)
    parts = encoded.cond["context"].split(16, dim=-1)
    alone = loaded(plain).model
    for part, tower in zip(parts, model.text, strict=True):
        alone.text[0].load_state_dict(tower.state_dict())
        single = encode_prompts(alone, words[:1], *asked_for, automatic1111=True)
        assert torch.allclose(part, single.cond["context"], rtol=1e-4)
    assert not torch.allclose(*parts)


# LoRAs


def test_a_lora_is_its_product_in_the_weights(tiny, tmp_path) -> None:
    file = lora_file(tiny.model, tmp_path)
    last = drawn(tiny, loras=(f"{file}:0.7",))
    (line,) = [line for line in last.notes if "LoRA" in line]
    assert line.startswith("style.safetensors x 0.7: kohya LoRA of rank 2, alpha 1: 2 layers")
    assert "1 unmatched (lora_unet_mid_block_attentions_7_proj_in)" in line
    by_hand = loaded()
    tensors = load_file(file)
    weights = dict(by_hand.model.named_parameters())
    for layer, name in LAYERS.items():
        down, up = (tensors[f"{layer}.lora_{half}.weight"] for half in ("down", "up"))
        with torch.no_grad():
            weights[name] += 0.7 * (1 / 2) * up @ down
    assert psnr(last.pictures, pictures(by_hand)) >= 60
    assert psnr(last.pictures, pictures(tiny)) < 40
    with torch.no_grad():  # another weight in the text tower than in the U-Net
        down, up = (tensors[f"{layer}.lora_{half}.weight"] for half in ("down", "up"))
        weights[name] += (0.2 - 0.7) * (1 / 2) * up @ down
    apart = drawn(tiny, loras=(f"{file}:0.2:0.7",))
    assert psnr(apart.pictures, pictures(by_hand)) >= 60 > psnr(apart.pictures, last.pictures)
    assert any("style.safetensors x 0.2 (text), 0.7 (U-Net)" in line for line in apart.notes)


def test_marks_in_a_prompt_are_loras_of_the_folder(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = lora_file(tiny.model, tmp_path / "loras")
    marked = drawn(tiny, prompt="a red cat<lora:style:0.7>")
    assert (marked.pictures == pictures(tiny, loras=(f"{file}:0.7",))).all()
    assert marked.request.prompt == "a red cat<lora:style:0.7>"  # kept for the record
    with pytest.raises(ValueError, match=r"no LoRA 'stile' .* Did you mean 'style'"):
        pictures(tiny, prompt="a cat <lora:stile:1>")
    with pytest.raises(ValueError, match=r"no LoRA .\.\./loras/style"):
        pictures(tiny, prompt="a cat <lora:../loras/style:1>")


def test_loras_of_others_are_refused(tiny, tmp_path) -> None:
    other = lora_file(tiny.model, tmp_path, name="other", width=24)
    with pytest.raises(ValueError, match=r"another family of models.*the model is tiny"):
        pictures(tiny, loras=(other,))
    stranger = tmp_path / "stranger.safetensors"
    layer = "lora_unet_double_blocks_0_img_attn_proj"
    halves = {"lora_down": torch.zeros(2, 8), "lora_up": torch.zeros(8, 2)}
    save_file({f"{layer}.{k}.weight": v for k, v in halves.items()}, stranger)
    with pytest.raises(ValueError, match=r"none of its 1 layers.*FLUX"):
        pictures(tiny, loras=(str(stranger),))
    with pytest.raises(ValueError, match="the file does not exist"):
        pictures(tiny, loras=("nowhere.safetensors",))


# From a picture, and within one


def test_strength_is_how_far_the_picture_is_left(tiny, tmp_path) -> None:
    file = photo(tmp_path)
    near, far = (pictures(tiny, image=file, strength=s, steps=20) for s in (0.05, 1.0))
    model = tiny.model
    start = torch.tensor(open_picture(Path(file))).permute(2, 0, 1)[None] / 127.5 - 1
    same = to_pictures(model.autoencoder.reconstruct(start))
    assert psnr(near, same) > psnr(far, same)
    assert drawn(tiny, image=file).request.strength == 0.75
    assert drawn(tiny, image=file, mask=half_mask(tmp_path)).request.strength == 1.0


@pytest.mark.parametrize("channels", [4, 9])
def test_unpainted_pixels_stay_at_any_size(channels, tmp_path) -> None:
    model = loaded(config(unet=replace(UNET, in_channels=channels)))
    file, mask = photo(tmp_path, 71, 99), half_mask(tmp_path, 71, 99)
    (found,) = pictures(model, image=file, mask=mask)
    original = open_picture(Path(file))
    assert (found[:, 35:] == original[:, 35:]).all()
    assert psnr(found[:, :35], original[:, :35]) < 30


def test_another_size_covers_and_says_so(tiny, tmp_path) -> None:
    last = drawn(tiny, image=photo(tmp_path, 128, 64), size="64x64")
    assert last.pictures.shape == (1, 64, 64, 3)
    assert any("cropped around its middle" in line for line in last.notes)
    gradient = np.zeros((64, 128, 3), np.uint8)
    gradient[:, 32:96] = 200
    save_picture(tmp_path / "band.png", gradient)
    opened = starting_picture.open_original(str(tmp_path / "band.png"), "", (64, 64), 3)
    assert (opened.picture == 200).all()


def test_a_mask_paints_from_the_middle_grey_up(tmp_path) -> None:
    """As diffusers' mask processor, which rounds at one half."""
    greys = np.array([[0, 1, 127, 128, 129, 255] * 4] * 24, np.uint8)[:, :, None]
    save_picture(tmp_path / "greys.png", greys)
    original = starting_picture.open_original(
        photo(tmp_path, 24, 24), str(tmp_path / "greys.png"), None, 3
    )
    assert original.paint is not None
    assert original.paint[0, :6].tolist() == [False, False, False, True, True, True]


def test_a_model_that_never_dropped_its_text_has_no_guidance() -> None:
    made = StableDiffusion(config(dropped=0.0))
    cond = {"context": torch.zeros(1, 2, 16)}
    for guidance in (0.0, 1.5, 7.5):
        with pytest.raises(ValueError, match=f"guidance must be 1, not {guidance}"):
            made.denoiser(cond, cond, guidance)
    made.denoiser(cond, cond, 1.0)
    StableDiffusion(config(dropped=0.1)).denoiser(cond, cond, 7.5)


def test_pictures_and_masks_that_do_not_do(tiny, tmp_path) -> None:
    file, mask = photo(tmp_path), half_mask(tmp_path)
    (tmp_path / "notes.png").write_text("no picture")
    black = tmp_path / "black.png"
    save_picture(black, np.zeros((64, 64, 3), np.uint8))
    thin = np.zeros((64, 64, 1), np.uint8)
    thin[:, 3] = 255
    save_picture(tmp_path / "thin.png", thin)
    for fields, words in (
        ({"image": str(tmp_path / "notes.png")}, "notes.png: not a PNG"),
        ({"image": str(tmp_path / "none.png")}, "none.png: No such file"),
        ({"image": file, "mask": half_mask(tmp_path, 32, 64)}, "32x64 pixels, the picture 64x64"),
        ({"image": file, "mask": str(black)}, "black.png is black"),
        ({"image": file, "mask": str(tmp_path / "thin.png")}, "too thin"),
        ({"image": file, "mask": mask, "size": "72x64"}, "size must be the picture's, 64x64"),
        ({"image": photo(tmp_path, 12, 64)}, "16 to 4096"),
        ({"image": file, "strength": 0.1}, "leaves no step of 3"),
    ):
        with pytest.raises(ValueError, match=words):
            pictures(tiny, **fields)


# Models


def test_models_that_draw_no_prompts_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"its U-Net reads 7 channels, not 4"):
        pictures(loaded(config(unet=replace(UNET, in_channels=7))))
    painter = loaded(config(unet=replace(UNET, in_channels=9)))
    with pytest.raises(ValueError, match="model for inpainting"):
        pictures(painter)
    with pytest.raises(ValueError, match="model for inpainting"):
        pictures(painter, image=photo(tmp_path))
    speechless = replace(loaded(), tokenizers=())
    with pytest.raises(ValueError, match=r"0 tokenizers for 1 text"):
        pictures(speechless)


def test_precision_is_what_was_asked_for(tiny) -> None:
    exact, half = pictures(tiny), pictures(tiny, precision="bfloat16")
    assert 15 < psnr(half, exact) < 60
    cast = loaded()
    cast.model.to(torch.bfloat16)
    assert psnr(pictures(cast, precision="bfloat16"), exact) > 15
    with pytest.raises(ValueError, match=r"weights in torch\.bfloat16"):
        pictures(cast)


def test_a_refiner_reads_an_aesthetic_score() -> None:
    crop = uncropped((96, 64))
    sizes = [size_conditioning(count, crop, 6.0).tolist() for count in (6, 5)]
    assert sizes == [[[96, 64, 0, 0, 96, 64]], [[96, 64, 0, 0, 6.0]]]
    with pytest.raises(ValueError, match=r"reads 4 sizes; only 6 \(SDXL\) and 5"):
        size_conditioning(4, crop)


# Learned words, pooled vectors and sizes


def embedding(folder: Path, name: str, vectors: torch.Tensor) -> None:
    (folder / "embeddings").mkdir(exist_ok=True)
    save_file({"emb_params": vectors}, folder / "embeddings" / f"{name}.safetensors")


def test_a_learned_word_is_its_vectors(tiny, tmp_path, monkeypatch) -> None:
    """A file that holds the vectors of "red" and "cat" says the same as "red cat"."""
    monkeypatch.chdir(tmp_path)
    plain, plain_words = pictures(tiny, prompt="a red cat"), tiny.tokenizers[0]
    table = tiny.model.text[0].token.weight
    embedding(tmp_path, "my-style", table[plain_words.pieces("red cat")].clone())
    last = drawn(tiny, prompt="a My-Style")
    assert (last.pictures == plain).all()
    assert "my-style.safetensors: 'my-style' is 2 vectors" in last.notes
    assert tiny.model.text[0].token.weight.shape == table.shape
    heavier = pictures(tiny, prompt="a (my-style:1.5)")
    assert (heavier == pictures(tiny, prompt="a (red cat:1.5)")).all()
    unnamed = drawn(tiny, prompt="a my-styles")  # another word
    assert not unnamed.notes
    long = drawn(tiny, prompt="my-style, " * 12)  # windows begin with it, and are said
    assert any("windows" in line for line in long.notes)
    embedding(tmp_path, "other", torch.zeros(1, 768))
    with pytest.raises(ValueError, match=r"other\.safetensors.*Stable Diffusion 1\.x"):
        pictures(tiny, prompt="a cat like other")
    assert (pictures(tiny, prompt="a red cat") == plain).all()


def test_the_pooled_vector_is_the_first_windows_and_empty_is_zeros() -> None:
    plain = config()
    text = replace(plain.text[0], dim=12)
    unet = replace(UNET, added=12 + 6 * 8, size_waves=8)
    sampling = replace(plain.sampling, zeros_for_empty=True)
    model = loaded(replace(plain, text=(text,), unet=unet, sampling=sampling))
    encoded = encode_prompts(model.model, model.tokenizers, "a cat BREAK a dog", "", (96, 64))
    first = encode_prompts(model.model, model.tokenizers, "a cat", "", (96, 64))
    assert torch.allclose(encoded.cond["vector"], first.cond["vector"])
    assert not encoded.uncond["vector"].any() and not encoded.uncond["context"].any()
    assert encoded.uncond["sizes"].tolist() == [[96, 64, 0, 0, 96, 64]]
    assert pictures(model, prompt="a cat", negative="", n=2).shape == (2, 64, 64, 3)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no exact products of bytes here")
def test_eight_bits_draw_nearly_the_same_picture_and_leave_the_model_alone(tiny):
    plain = pictures(tiny)
    whole = pictures(tiny, quantize="int8")
    assert not np.array_equal(whole, plain)
    assert psnr(whole, plain) > 30
    alone = {"quantize": "int8", "deterministic": True}
    assert np.array_equal(pictures(tiny, n=2, **alone)[1:], pictures(tiny, seed=4, **alone))
    assert np.array_equal(pictures(tiny), plain)


def test_small_models_draw_small_pictures(tiny):
    """The built-in world is learned at 32 pixels."""
    assert pictures(tiny, size="32x16").shape == (1, 16, 32, 3)

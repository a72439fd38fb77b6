"""Published weights trained further: what moves, what stays, and what other programs read of it.

The witness is diffusers, with tiny random pipelines of its own in every form.
"""

import dataclasses
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.parity.tiny_pipelines import FORMS
from triptych.diffusion.noise import PictureNoise
from triptych.loading import load
from triptych.requests import Training, TrainTextToImage
from triptych.systems.stable_diffusion.adapters.lora_files import read_lora, unet_target
from triptych.systems.stable_diffusion.adapters.lora_updates import merge
from triptych.systems.stable_diffusion.draw_prompts import encode_texts
from triptych.systems.stable_diffusion.model import StableDiffusion, sample
from triptych.systems.stable_diffusion.published.folder.write import write_diffusers
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.train.loop import fit
from triptych.training import build


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    """A function from a form to its folder, each written once."""
    root = tmp_path_factory.mktemp("published")

    def folder(form: str) -> Path:
        path = root / form
        if not path.exists():
            FORMS[form](root / f"parts of {form}").save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(12):
        shape = (40, 24, 3) if number % 2 else (32, 32, 3)
        split = root / ("test" if number > 9 else "train")
        split.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(split / f"{number}.png")
        (split / f"{number}.txt").write_text("a red circle\na small star")
    return root


def request(start: Path, pictures: Path, **more) -> TrainTextToImage:
    training = Training(
        data=str(pictures), size=16, steps=3, batch_size=2, device="cpu", log_every=1,
        sample_every=0, **more.pop("training", {}),
    )  # fmt: skip
    return TrainTextToImage(training, init=str(start), learning_rate=1e-3, **more)


def trained(made: TrainTextToImage, run: Path) -> StableDiffusion:
    recipe = dataclasses.replace(build(made), evaluate=None, sample=None)
    for _ in fit(recipe, made.training, run):
        pass
    found = load(str(run), dtype="float32").model
    assert isinstance(found, StableDiffusion)
    return found


def weights(path: Path) -> tuple[StableDiffusion, dict[str, torch.Tensor]]:
    found = load(str(path), dtype="float32").model
    assert isinstance(found, StableDiffusion)
    return found, {name: x.clone() for name, x in found.state_dict().items()}


FORMS_AND_CACHES = [
    ("1.x", True),
    ("2.x", False),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("1.x", False), ("2.x", True), ("XL", False), ("XL", True))
    ),
]


@pytest.mark.parametrize(("form", "cached"), FORMS_AND_CACHES)
def test_all_of_the_unet_moves_and_nothing_else(published, pictures, tmp_path, form, cached):
    start = published(form)
    base, before = weights(start)
    cache = str(tmp_path / "cache") if cached else ""
    after = trained(request(start, pictures, cache=cache, drop=0.4), tmp_path / "run")
    assert after.config == base.config  # its schedule and what it predicts among it
    assert after.config.schedule.predicts == ("velocity" if form == "2.x" else "noise")
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("unet.")), name
    (checkpoint,) = (tmp_path / "run").glob("step-000003")
    saved = load_file(checkpoint / "model.safetensors")
    assert saved.keys() == base.unet.state_dict().keys()


@pytest.mark.parametrize(("form", "cached"), FORMS_AND_CACHES)
def test_low_rank_updates_leave_all_weights_as_they_are(
    published, pictures, tmp_path, form, cached
) -> None:
    """The export is base and update together, and the update is read alone, too."""
    start, run = published(form), tmp_path / "run"
    base, before = weights(start)
    cache = str(tmp_path / "cache") if cached else ""
    after = trained(request(start, pictures, lora=2, cache=cache), run)
    saved = load_file(run / "step-000003" / "model.safetensors")
    attention = ("q_proj", "k_proj", "v_proj", "out_proj")
    updated = set()
    for name, tensor in saved.items():
        ours = name.replace(".linear.", ".") if ".linear." in name else name
        if ".lora_" in name:
            updated.add(name.rpartition(".")[0])
            assert tensor.abs().max() > 0  # both halves moved
        else:
            assert torch.equal(tensor, before[f"unet.{ours}"])
    assert updated and all(name.endswith(attention) for name in updated)
    state = after.state_dict()
    for name in updated:
        change = saved[f"{name}.lora_up"] @ saved[f"{name}.lora_down"]
        whole = before[f"unet.{name}.weight"] + change
        torch.testing.assert_close(state[f"unet.{name}.weight"], whole)
    for name, tensor in state.items():
        if name.removeprefix("unet.").removesuffix(".weight") not in updated:
            assert torch.equal(tensor, before[name]), name

    target = unet_target(base.unet)
    lora = read_lora(run / "lora.safetensors", [target])
    assert (lora.form, len(lora.matched), len(lora.unmatched)) == ("kohya", len(updated), 0)
    merge(base.unet, (lora.updates["unet"], 1.0))
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(tensor, state[name])


@pytest.mark.parametrize("form", ["1.x", pytest.param("2.x", marks=pytest.mark.slow), "XL"])
def test_diffusers_reads_the_trained_folder_and_the_lora(
    published, pictures, tmp_path, form
) -> None:
    """What its U-Net says with the trained weights, and with the LoRA on the published ones, is
    what ours says.
    """
    start, run = published(form), tmp_path / "run"
    after = trained(request(start, pictures, lora=2), run)
    found = load(str(run), dtype="float32")
    write_diffusers(after, found.tokenizers, tmp_path / "folder")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder")
    ours = pipeline.scheduler.config.get("prediction_type", "epsilon")
    assert ours == ("v_prediction" if form == "2.x" else "epsilon")
    tuned = diffusers.DiffusionPipeline.from_pretrained(start)
    plain = {name: x.clone() for name, x in tuned.unet.state_dict().items()}
    apply_kohya(tuned.unet, load_file(run / "lora.safetensors"))
    torch.manual_seed(0)
    x, time = torch.randn(2, 4, 8, 8), torch.tensor([7, 400])
    cond = {k: torch.randn(2, 5, v) for k, v in {"context": after.config.unet.context}.items()}
    told = {}
    if form == "XL":
        cond |= {"vector": torch.randn(2, 10), "sizes": torch.randint(0, 64, (2, 6))}
        told = {"added_cond_kwargs": {"text_embeds": cond["vector"], "time_ids": cond["sizes"]}}
    with torch.inference_mode():
        expected = after.predict(x, time.float(), cond)
        for network in (pipeline.unet, tuned.unet):
            answer = network(x, time, cond["context"], **told).sample
            torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)
        tuned.unet.load_state_dict(plain)
        without = tuned.unet(x, time, cond["context"], **told).sample
    assert (without - expected).abs().max() > 1e-3  # the update does something


def apply_kohya(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """By the form's own definition: lora_unet_ and the layer's name without dots; alpha / rank."""
    layers = {f"lora_unet_{n.replace('.', '_')}": m for n, m in network.named_modules()}
    for name in {key.partition(".")[0] for key in tensors}:
        down, up = (tensors[f"{name}.lora_{half}.weight"] for half in ("down", "up"))
        layers[name].weight.data += tensors[f"{name}.alpha"] / len(down) * up @ down


def test_sdxl_is_told_how_its_pictures_were_cut(published, pictures, tmp_path, monkeypatch):
    """In buckets and squares, from the cache and without one: true sizes, corner, bucket."""
    from triptych.systems.stable_diffusion import recipe

    told = []
    monkeypatch.setattr(
        recipe, "objective", lambda model, latents, cond, **_: told.append((latents, cond))
    )
    for buckets in (False, True):
        for cache in ("", str(tmp_path / "cache")):
            made = request(published("XL"), pictures, buckets=buckets, cache=cache)
            ready = build(made)
            for batch, _ in zip(ready.batches(0), range(6), strict=False):
                ready.updates[0].objective(batch, 1)
    shapes = {(32, 32), (40, 24)}
    for latents, cond in told:
        assert cond["sizes"].shape == (2, 6)
        for before_h, before_w, top, left, high, wide in cond["sizes"].tolist():
            assert (before_h, before_w) in shapes
            assert (high, wide) == tuple(2 * side for side in latents.shape[2:])
            scale = max(high / before_h, wide / before_w)
            assert abs(2 * top - (before_h * scale - high)) <= 1
            assert abs(2 * left - (before_w * scale - wide)) <= 1
    seen = {tuple(latents.shape[2:]) for latents, _ in told}
    assert seen == {(8, 8), (10, 6)}


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("inpainting", "reads 9 channels but predicts 4"),
        ("XL refiner", "conditioned on an aesthetic score"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(published, pictures, form, why):
    with pytest.raises(ValueError, match=why):
        build(request(published(form), pictures))


def test_what_the_model_has_of_its_own_is_refused_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"^widths, predicts: the model of init has its own"):
        TrainTextToImage(init="x", widths=(8, 8), predicts="noise")


def test_averaged_updates_are_what_is_exported(published, pictures, tmp_path) -> None:
    """With a half-life, merged weights and LoRA file are those of the average, and draw alike."""
    start, run = published("1.x"), tmp_path / "run"
    made = request(start, pictures, lora=2, training={"ema_halflife": 2.0})
    after = trained(made, run)
    average = load_file(run / "step-000003" / "ema.safetensors")
    last = load_file(run / "step-000003" / "model.safetensors")
    name = next(name for name in average if name.endswith("lora_up"))
    assert not torch.equal(average[name], last[name])
    base, _ = weights(start)
    lora = read_lora(run / "lora.safetensors", [unet_target(base.unet)])
    layer = f"{name.rpartition('.')[0]}.weight"
    assert torch.equal(lora.updates["unet"][layer].up, average[name])
    merge(base.unet, (lora.updates["unet"], 1.0))
    tokenizers = load(str(run)).tokenizers
    pictured = []
    for model in (base, after):
        assert isinstance(model.unet, LatentUNet)
        with torch.inference_mode():
            cond, uncond = (
                encode_texts(model, tokenizers, [text]) for text in ("a red circle", "")
            )
            *_, end = sample(model, cond, uncond, PictureNoise([3]), steps=3)
        pictured.append(end.x)
    torch.testing.assert_close(*pictured, atol=1e-4, rtol=1e-4)

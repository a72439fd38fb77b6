"""Autoencoders by themselves: real tiny ones, diffusers' folders, LDM's files."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.reference import randomised
from triptych.loading import load
from triptych.systems.autoencoder.published import ldm_rules
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.systems.autoencoder.tiny_published import (
    decoder_rules,
    diffusers_rules,
    encoder_rules,
)
from triptych.weights.files.weight_file import read_weights
from triptych.weights.keymap import export

KL = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "scaling_factor": 0.13025,
}  # fmt: skip


def halves(folder, config, suffix=".pth"):
    torch.manual_seed(0)
    model = TinyAutoencoder(config)
    state = model.state_dict()
    for end, rules in (("encoder", encoder_rules(config)), ("decoder", decoder_rules(config))):
        own = {name: x for name, x in state.items() if name.startswith(end)}
        torch.save(export(own, rules), folder / f"tae_{end}{suffix}")
    return model


@pytest.mark.parametrize(
    "given", ["taef2_encoder.pth", pytest.param("taef2_decoder.pth", marks=pytest.mark.slow)]
)
def test_the_real_one_of_flux_2(given, real_data, tmp_path):
    """Either half is enough; it reconstructs photographs at its published quality."""
    for end in ("encoder", "decoder"):
        shutil.copy(real_data / "weights" / f"taef2_{end}.pth", tmp_path)
    loaded = load(str(tmp_path / given))
    assert loaded.card.model == "tiny-autoencoder" and loaded.config.latent_channels == 32
    assert {x.dtype for x in loaded.model.state_dict().values()} == {torch.float32}
    photo = sorted((real_data / "photos").rglob("*.jpg"))[0]
    picture = np.asarray(Image.open(photo).convert("RGB").resize((256, 256)))
    image = torch.from_numpy(picture / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        latents = loaded.model.encode(image)
        back = loaded.model.decode(latents)
    assert latents.shape == (1, 32, 32, 32)
    error = ((back - image) / 2).square().mean()
    assert -10 * error.log10() > 22
    stored = load(str(tmp_path / given), dtype="stored").model
    assert {x.dtype for x in stored.state_dict().values()} == {torch.float16}


def test_a_half_without_the_other(real_data, tmp_path):
    path = tmp_path / "taef2_decoder.pth"
    shutil.copy(real_data / "weights" / "taef2_decoder.pth", path)
    with pytest.raises(ValueError, match=r"taef2_encoder.pth is not beside it"):
        load(str(path))
    path.rename(tmp_path / "mine.pth")
    with pytest.raises(
        ValueError, match=r"rename it to mine_decoder.pth, and its other half to mine_enc"
    ):
        load(str(tmp_path / "mine.pth"))
    sana = tmp_path / "taesana_encoder.pth"
    shutil.copy(real_data / "weights" / "taesana_encoder.pth", sana)
    with pytest.raises(ValueError, match=r"taesana_decoder\.pth is not beside it"):
        load(str(sana))
    shutil.copy(tmp_path / "mine.pth", tmp_path / "taesana_decoder.pth")
    with pytest.raises(ValueError, match="with a factor of 8"):
        load(str(sana))


@pytest.mark.parametrize("channels", [4, 16])
def test_two_files_or_one(channels, tmp_path):
    model = halves(tmp_path, TinyAutoencoderConfig(latent_channels=channels, width=8))
    torch.save(export(model.state_dict(), diffusers_rules(model.config)), tmp_path / "tae_both.pth")
    for name in ("tae_encoder.pth", "tae_decoder.pth", "tae_both.pth"):
        loaded = load(str(tmp_path / name))
        assert loaded.config == model.config
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[key], tensor), key


@torch.no_grad()
def test_a_tiny_folder_of_diffusers(tmp_path):
    widths = {f"{end}_block_out_channels": (8, 8) for end in ("encoder", "decoder")}
    peer = randomised(
        diffusers.AutoencoderTiny(**widths, num_encoder_blocks=(1, 2), num_decoder_blocks=(2, 1))
    )
    peer.save_pretrained(tmp_path / "tiny")
    loaded = load(str(tmp_path / "tiny"))
    assert loaded.card.model == "tiny-autoencoder"
    latents = torch.randn(1, 4, 6, 5)
    theirs = peer.decode(latents).sample
    torch.testing.assert_close(loaded.model.decode(latents), theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_kl_folder_of_diffusers(variant, tmp_path):
    peer = randomised(diffusers.AutoencoderKL(**KL), std=0.08)
    peer.save_pretrained(tmp_path / "vae", variant=variant)
    loaded = load(str(tmp_path / "vae"))
    assert loaded.card.model == "autoencoder" and loaded.config.scale == 0.13025
    latents = torch.randn(1, 4, 6, 5)
    theirs = peer.decode(latents / 0.13025).sample
    torch.testing.assert_close(loaded.model.decode(latents), theirs, atol=1e-4, rtol=1e-4)
    half = load(str(tmp_path / "vae"), dtype="bfloat16").model
    assert {x.dtype for x in half.state_dict().values()} == {torch.bfloat16}
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLFlux2"}))
    with pytest.raises(ValueError, match=r"FLUX\.2's autoencoder"):
        load(str(tmp_path / "vae"))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_kl_file_of_ldm_needs_its_configuration(prefix, tmp_path):
    """With what it was trained against beside it, which is left out."""
    peer = randomised(diffusers.AutoencoderKL(**KL), std=0.08)
    peer.save_pretrained(tmp_path / "vae")
    whole = load(str(tmp_path / "vae"))
    state = {prefix + n: x for n, x in export(whole.model.state_dict(), ldm_rules(2)).items()}
    state[f"{prefix}loss.logvar"] = torch.zeros(())
    path = tmp_path / "ldm" / "vae.pt"
    path.parent.mkdir()
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"scale of its latents .0.18215 in .* config.json"):
        load(str(path))
    shutil.copy(tmp_path / "vae" / "config.json", path.parent)
    loaded = load(str(path))
    assert loaded.config == whole.config
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    assert load(str(weights)).config == whole.config  # the file of a folder, given itself
    assert len(read_weights(weights)) == len(whole.model.state_dict())


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel is not the KL"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel is not the KL"),
    ],
)
def test_other_networks_of_diffusers_are_refused(stored, words, tmp_path):
    peer = diffusers.AutoencoderKL(**KL)
    peer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=words):
        load(str(tmp_path))
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        load(str(tmp_path))

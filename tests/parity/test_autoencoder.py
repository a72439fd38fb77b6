"""Autoencoders against diffusers' with the same random weights, and a real one against a plain
evaluation of its file.
"""

import os

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch.nn import functional as F

from tests.parity.reference import randomised
from triptych.systems.autoencoder import published as names
from triptych.systems.autoencoder import tiny_published
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.vision.images import open_picture
from triptych.weights.files.weight_file import read_weights
from triptych.weights.keymap import convert, export, fill

FORMS = {
    "as in Stable Diffusion": {},
    "sixteen channels, shifted": {
        "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": 0.3611, "shift_factor": 0.1159,
    },
    "without attention": {"mid_block_add_attention": False, "layers_per_block": 1},
    "statistics per channel": {
        "scaling_factor": 0.5, "latents_mean": [-1.7, 1.9, -1.4, 2.5],
        "latents_std": [8.5, 5.9, 6.5, 5.2],
    },
    "one level": {"block_out_channels": [16]},
}  # fmt: skip


def pair(form="as in Stable Diffusion", std=0.1):
    """Diffusers' network and ours, which holds the same weights."""
    settings = {
        "block_out_channels": [16, 32, 32], "layers_per_block": 2, "norm_num_groups": 8,
    } | FORMS[form]  # fmt: skip
    levels = len(settings["block_out_channels"])
    settings["down_block_types"] = ["DownEncoderBlock2D"] * levels
    settings["up_block_types"] = ["UpDecoderBlock2D"] * levels
    peer = randomised(AutoencoderKL(**settings), std)
    ours = Autoencoder(names.from_diffusers(dict(peer.config)))
    fill(ours, convert(peer.state_dict(), names.diffusers_rules()))
    return peer, ours.eval()


def picture(height, width, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (36, 20), (4, 60)])
@pytest.mark.parametrize("form", FORMS)
def test_moments_and_decoded_pictures(form, size):
    """(36, 20) has latents of 9 x 5: sides need be multiples of nothing but the factor."""
    peer, ours = pair(form)
    theirs = peer.encode(picture(*size)).latent_dist
    posterior = ours.posterior(picture(*size))
    torch.testing.assert_close(posterior.mean, theirs.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.logvar, theirs.logvar, atol=1e-4, rtol=1e-4)
    assert posterior.mean.std() > 0.1  # weights at which something happens
    torch.testing.assert_close(posterior.kl(), theirs.kl(), atol=1e-2, rtol=1e-4)
    z = torch.randn(theirs.mean.shape, generator=torch.Generator().manual_seed(2))
    decoded = peer.decode(z).sample
    torch.testing.assert_close(ours.decode(ours.scale(z)), decoded, atol=1e-4, rtol=1e-4)
    assert decoded.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_scaled_latents_are_those_of_the_pipelines(form):
    """Diffusers scales outside of its autoencoder: shift and scale of Stable Diffusion 3, means and
    deviations of Playground 2.5.
    """
    peer, ours = pair(form)
    theirs = peer.encode(picture(16, 16)).latent_dist
    z = theirs.sample(torch.Generator().manual_seed(3))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    config = peer.config
    if config.latents_mean:
        mean, std = (
            torch.tensor(x)[:, None, None] for x in (config.latents_mean, config.latents_std)
        )
        z = (z - mean) * config.scaling_factor / std
    else:
        z = (z - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(ours.encode(picture(16, 16), noise), z, atol=1e-4, rtol=1e-4)
    mode = ours.encode(picture(16, 16))
    torch.testing.assert_close(ours.unscale(mode), theirs.mode(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 47), (30, 5), (35, 36)])
def test_a_size_that_is_no_multiple_is_continued_and_cut(size):
    peer, ours = pair()
    height, width = size
    image = picture(*size)
    rows = torch.arange(height + -height % 4).clamp(max=height - 1)
    columns = torch.arange(width + -width % 4).clamp(max=width - 1)
    whole = image[:, :, rows][:, :, :, columns]
    mean = peer.encode(whole).latent_dist.mean
    latents = ours.encode(image)
    assert latents.shape[1:] == ours.config.latent_shape(height, width)
    torch.testing.assert_close(latents, mean * 0.18215, atol=1e-4, rtol=1e-4)
    back = ours.decode(latents, size)
    assert back.shape == image.shape
    theirs = peer.decode(mean).sample[:, :, :height, :width]
    torch.testing.assert_close(back, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.reconstruct(image), back)


def test_gradients():
    peer, ours = pair()
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    theirs = peer.encode(picture(16, 16)).latent_dist
    peer.decode(theirs.mean + theirs.std * noise).sample.square().mean().backward()
    ours.reconstruct(picture(16, 16), noise).square().mean().backward()
    gradients = {name: p.grad for name, p in peer.named_parameters()}
    expected = convert(gradients, names.diffusers_rules())
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert largest > 1e-4
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-4 * largest, rtol=1e-3, msg=name
        )


@torch.no_grad()
def test_in_bfloat16_both_are_as_near_to_float32():
    peer, ours = pair()
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    exact = ours.decode(ours.scale(z))
    theirs = peer.to(torch.bfloat16).decode(z.to(torch.bfloat16)).sample.float()
    back = ours.to(torch.bfloat16).decode(ours.scale(z))
    assert back.dtype == torch.float32
    error = [((x - exact).square().mean() / exact.square().mean()).sqrt() for x in (back, theirs)]
    assert error[0] < 1.2 * error[1] < 0.1


@pytest.mark.parametrize("form", FORMS)
def test_export_undoes_convert(form):
    peer, ours = pair(form)
    state = peer.state_dict()
    back = export(ours.state_dict(), names.diffusers_rules())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("form", ["as in Stable Diffusion", "without attention"])
def test_names_of_ldm(form):
    """What we write under LDM's names, diffusers' own converter turns into its weights again."""
    peer, ours = pair(form)
    rules = names.ldm_rules(3)
    state = export(ours.state_dict(), rules)
    if form == "as in Stable Diffusion":
        assert state["decoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
        whole = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
        theirs = convert_ldm_vae_checkpoint(whole, dict(peer.config))
        assert theirs.keys() == peer.state_dict().keys()
        assert all(torch.equal(theirs[name], x) for name, x in peer.state_dict().items())
    back = convert(names.without_loss(state | {"loss.logvar": torch.zeros(())}), rules)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in ours.state_dict().items())


def test_names_of_2022():
    """Diffusers keeps them readable by renaming; so do we, and write them back."""
    peer, ours = pair()
    rules = names.diffusers_rules(["decoder.mid_block.attentions.0.query.weight"])
    old = export(ours.state_dict(), rules)
    assert not old.keys() <= peer.state_dict().keys()
    assert names.diffusers_rules(old) == rules
    back = convert(old, rules)
    assert all(torch.equal(back[name], x) for name, x in ours.state_dict().items())
    other = dict(old)
    peer._fix_state_dict_keys_on_load(other)
    assert other.keys() == peer.state_dict().keys()
    assert all(torch.equal(other[name], x) for name, x in peer.state_dict().items())


def tiny_pair(channels):
    peer = AutoencoderTiny(latent_channels=channels)
    torch.manual_seed(0)
    for parameter in peer.parameters():
        parameter.data.add_(0.03 * torch.randn_like(parameter))
    config = tiny_published.from_diffusers(dict(peer.config))
    ours = TinyAutoencoder(config)
    fill(ours, convert(peer.state_dict(), tiny_published.diffusers_rules(config)))
    return peer.eval(), ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 16])
def test_tiny_autoencoders(channels):
    peer, ours = tiny_pair(channels)
    image = picture(40, 24)
    latents = peer.encode(image).latents
    torch.testing.assert_close(ours.encode(image), latents, atol=1e-5, rtol=1e-5)
    z = 4 * torch.randn(2, channels, 5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.decode(z), peer.decode(z).sample, atol=1e-5, rtol=1e-5)
    rules = tiny_published.diffusers_rules(ours.config)
    back = export(ours.state_dict(), rules)
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in peer.state_dict().items())
    assert tiny_published.from_diffusers(tiny_published.to_diffusers(ours.config)) == ours.config


@torch.no_grad()
def test_tiny_autoencoders_own_two_files():
    """In the decoder's, the layers are one further than in diffusers': the bend comes first."""
    peer, ours = tiny_pair(4)
    state = peer.state_dict()
    files: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in state.items():
        part, _, place, rest = name.split(".", 3)
        files[part][f"{int(place) + (part == 'decoder')}.{rest}"] = tensor
    assert tiny_published.from_taesd(files["encoder"]) == ours.config
    converted = convert(files["encoder"], tiny_published.encoder_rules(ours.config))
    converted |= convert(files["decoder"], tiny_published.decoder_rules(ours.config))
    assert converted.keys() == ours.state_dict().keys()
    assert all(torch.equal(converted[name], x) for name, x in ours.state_dict().items())


def test_other_tiny_autoencoders_are_refused(real_data):
    sana = read_weights(real_data / "weights" / "taesana_encoder.pth")
    with pytest.raises(ValueError, match="TAESD encoder with a factor of 8"):
        tiny_published.from_taesd(sana)
    with pytest.raises(ValueError, match="keep TAESD's format"):
        tiny_published.to_diffusers(TinyAutoencoderConfig(latent_channels=32, global_norm=True))
    with pytest.raises(ValueError, match="act_fn is 'gelu'; supported"):
        tiny_published.from_diffusers({"act_fn": "gelu"})


def plainly(file, x, twice=()):
    """A file of TAESD's evaluated layer by layer: which layers there are, its names say; `twice`
    are the places at which the side doubles.
    """
    last = max(int(name.split(".")[0]) for name in file)
    for place in range(last + 1):
        layer = {
            name.split(".", 1)[1]: x for name, x in file.items() if name.startswith(f"{place}.")
        }
        if place in twice:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if "weight" in layer:
            stride = 2 if not twice and "bias" not in layer else 1
            x = F.conv2d(x, layer["weight"], layer.get("bias"), stride, 1)
            if twice and place == 1:
                x = x.relu()
        elif layer:
            if "pool.0.weight" in layer:
                h = F.conv2d(x, layer["pool.0.weight"])
                groups = h.unflatten(1, (4, -1))
                mean = groups.mean((2, 3, 4), keepdim=True)
                spread = (groups - mean).square().mean((2, 3, 4), keepdim=True)
                h = ((groups - mean) / (spread + 1e-5).sqrt()).flatten(1, 2)
                h = h * layer["pool.1.weight"][:, None, None] + layer["pool.1.bias"][:, None, None]
                x = x + F.conv2d(h.relu(), layer["pool.3.weight"])
            h = x
            for i in (0, 2, 4):
                h = F.conv2d(h, layer[f"conv.{i}.weight"], layer[f"conv.{i}.bias"], padding=1)
                h = h.relu() if i < 4 else h
            x = (x + h).relu()
    return x


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_real_tiny_autoencoder_of_flux2(real_data, every):
    """Its PSNR on real photographs, by us and by the plain evaluation, to 0.01 dB."""
    files = [real_data / "weights" / f"taef2_{part}.pth" for part in ("encoder", "decoder")]
    encoder, decoder = (
        {name: x.float() for name, x in read_weights(file).items()} for file in files
    )
    config = tiny_published.from_taesd(encoder)
    assert config == TinyAutoencoderConfig(latent_channels=32, global_norm=True)
    ours = TinyAutoencoder(config).eval()
    state = convert(encoder, tiny_published.encoder_rules(config))
    fill(ours, state | convert(decoder, tiny_published.decoder_rules(config)))
    photos = sorted(p for p in (real_data / "photos").iterdir() if p.suffix in (".jpg", ".png"))
    assert len(photos) == 25
    photos, figures = photos[::every], []
    for photo in photos:
        pixels = open_picture(photo, channels=3)
        top, left = ((side - min(side, 192)) // 2 for side in pixels.shape[:2])
        pixels = pixels[top : top + 192, left : left + 192]
        pixels = pixels[: len(pixels) // 8 * 8, : pixels.shape[1] // 8 * 8]
        unit = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
        latents = ours.encode(unit * 2 - 1)
        plain = plainly(encoder, unit)
        torch.testing.assert_close(latents, plain, atol=1e-4, rtol=1e-4)
        decoded = plainly(decoder, torch.tanh(plain / 3) * 3, twice=(7, 12, 17))
        pair = [(ours.decode(latents) + 1) / 2, decoded]
        figures.append([-10 * (x.clamp(0, 1) - unit).square().mean().log10().item() for x in pair])
    ours_db, plain_db = np.array(figures).T
    np.testing.assert_allclose(ours_db, plain_db, atol=0.01)
    if os.environ.get("TRIPTYCH_FIGURES"):
        print({p.name: round(x, 2) for p, x in zip(photos, ours_db, strict=True)}, ours_db.mean())
    assert plain_db.min() > 18 and 24 < ours_db.mean() < 34

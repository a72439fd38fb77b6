"""Published autoencoders build on the meta device, with diffusers' names and shapes; others are
refused by name.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests.manifests import FOLDER
from triptych.systems.autoencoder import tiny_published
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.systems.autoencoder.published import (
    diffusers_rules,
    from_diffusers,
    ldm_rules,
    to_diffusers,
)
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.weights.keymap import convert, export, fill
from triptych.weights.skeleton import skeleton

DATA = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs" / "diffusers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="TRIPTYCH_DATA is not set")
MANIFEST = json.loads((FOLDER / "autoencoders.json").read_text())
MODELS = MANIFEST["models"]
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def nested(state, keep=0):
    """As `tests/manifests/make.py` writes it."""
    groups = {}
    for name, tensor in state.items():
        numbers = iter(NUMBER.findall(name)[:keep])
        template = NUMBER.sub(lambda _: next(numbers, "{}"), name)  # noqa: B023
        groups.setdefault(template, {})[name] = tensor
    result = {}
    for template, members in groups.items():
        shapes = {tuple(tensor.shape) for tensor in members.values()}
        if len(shapes) == 1:
            result[template] = [len(members), list(shapes.pop())]
        else:
            result |= nested(members, keep + 1)
    return result


def stored(name):
    return json.loads((DATA / name / "config.json").read_text())


@needs_data
def test_every_published_autoencoder_is_here():
    found = {str(path.parent.relative_to(DATA)) for path in DATA.glob("*/vae*/config.json")}
    assert found == {name for name in MODELS if "/" in name} and len(found) == 15


@needs_data
@pytest.mark.parametrize("name", sorted(name for name in MODELS if "/" in name))
def test_published_autoencoders_have_their_names_and_shapes(name):
    config = from_diffusers(stored(name))
    model = skeleton(lambda: Autoencoder(config))
    exported = export(model.state_dict(), diffusers_rules())
    assert nested(exported) == MODELS[name]
    fill(model, convert(exported, diffusers_rules()))
    assert from_diffusers(to_diffusers(config)) == config
    ldm = export(model.state_dict(), ldm_rules(len(config.widths)))
    assert convert(ldm, ldm_rules(len(config.widths))).keys() == model.state_dict().keys()


@needs_data
def test_the_published_scales():
    scales = {
        "stable-diffusion-v1-5": 0.18215, "stable-diffusion-2-1": 0.18215,
        "stable-diffusion-xl-base-1.0": 0.13025, "stable-diffusion-x4-upscaler": 0.08333,
        "stable-diffusion-3-medium-diffusers": 1.5305, "FLUX.1-dev": 0.3611,
        "playground-v2.5-1024px-aesthetic": 0.5,
    }  # fmt: skip
    configs = {name: from_diffusers(stored(f"{name}/vae")) for name in scales}
    assert {name: config.scale for name, config in configs.items()} == scales
    assert configs["stable-diffusion-v1-5"] == AutoencoderConfig()
    assert configs["FLUX.1-dev"].shift == 0.1159
    assert configs["stable-diffusion-x4-upscaler"].factor == 4
    assert configs["stable-diffusion-xl-base-1.0"].latent_shape(712, 1024) == (4, 89, 128)
    assert configs["playground-v2.5-1024px-aesthetic"].channel_stds[0] == 8.4927


@pytest.mark.parametrize("channels", [4, 16])
def test_tiny_autoencoders_have_their_names_and_shapes(channels):
    config = TinyAutoencoderConfig(latent_channels=channels)
    model = skeleton(lambda: TinyAutoencoder(config))
    exported = export(model.state_dict(), tiny_published.diffusers_rules(config))
    assert nested(exported) == MODELS[f"tiny, {channels} channels"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "PaellaVQModel"}, "Stable Cascade's quantised autoencoder"),
        ({"_class_name": "UNet2DModel"}, "UNet2DModel is not the KL autoencoder"),
        ({"act_fn": "relu"}, "act_fn is 'relu'; supported"),
        ({"out_channels": 4}, "in_channels and out_channels differ"),
        ({"use_quant_conv": False}, "use_quant_conv and use_post_quant_conv differ"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types must be"),
        ({"temporal": 3}, r"unknown fields: \['temporal'\]"),
        ({"latents_std": [1.0]}, "one number for each of 4 latent channels"),
    ],
)
def test_other_autoencoders_are_refused(changes, message):
    plain = {"block_out_channels": [64], "norm_num_groups": 8}
    assert from_diffusers(plain).widths == (64,)
    with pytest.raises(ValueError, match=message):
        from_diffusers(plain | changes)


def test_other_tensors_are_no_autoencoder():
    with torch.device("meta"):
        small = AutoencoderConfig(widths=(8, 16), groups=4)
        state = export(Autoencoder(small).state_dict(), ldm_rules(2))
    with pytest.raises(ValueError, match="no rule claims"):
        convert(state | {"encoder.down.1.attn.0.q.weight": torch.zeros(1)}, ldm_rules(2))

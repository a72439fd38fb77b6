"""Published U-Nets build on the meta device, with diffusers' names and shapes; single files are
identify_family by theirs; other families are refused by name.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.manifests import FOLDER
from triptych.systems.stable_diffusion.published.single_file.configs import UNETS
from triptych.systems.stable_diffusion.published.single_file.read import identify_family
from triptych.systems.stable_diffusion.published.unet import (
    diffusers_rules,
    from_diffusers,
    ldm_rules,
    to_diffusers,
)
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig
from triptych.weights.keymap import convert, export
from triptych.weights.skeleton import skeleton

DATA = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="TRIPTYCH_DATA is not set")
MANIFEST = json.loads((FOLDER / "diffusers_unets.json").read_text())["models"]
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
NAMES = {
    "playground-v2.5-1024px-aesthetic": "Stable Diffusion XL",
    "stable-diffusion-2-1": "Stable Diffusion 2.x",
    "stable-diffusion-2-1-base": "Stable Diffusion 2.x",
    "stable-diffusion-inpainting": "Stable Diffusion 1.x",
    "stable-diffusion-v1-4": "Stable Diffusion 1.x",
    "stable-diffusion-v1-5": "Stable Diffusion 1.x",
    "stable-diffusion-x4-upscaler": "Stable Diffusion x4 upscaler",
    "stable-diffusion-xl-base-1.0": "Stable Diffusion XL",
    "stable-diffusion-xl-refiner-1.0": "Stable Diffusion XL refiner",
}


def published(name, part="unet"):
    return json.loads((DATA / "diffusers" / name / part / "config.json").read_text())


def built(config):
    return skeleton(lambda: LatentUNet(config))


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


def small(**changes):
    settings = {"widths": (8, 16), "transformers": (1, 0), "heads": (2, 2), "groups": 4}
    return LatentUNetConfig(**(settings | {"context": 10, "blocks": 1} | changes))


@needs_data
@pytest.mark.parametrize("name", sorted(NAMES))
def test_published_unets_have_their_names_and_shapes(name):
    config = from_diffusers(published(name))
    state = built(config).state_dict()
    exported = export(state, diffusers_rules(config))
    assert nested(exported) == MANIFEST[name]
    back = convert(exported, diffusers_rules(config))
    assert {k: x.shape for k, x in back.items()} == {k: x.shape for k, x in state.items()}
    assert from_diffusers(to_diffusers(config)) == config


@needs_data
def test_every_published_unet_is_looked_at():
    folders = {path.parent.parent.name for path in DATA.glob("diffusers/*/unet/config.json")}
    assert folders == {*NAMES, "ddpm-butterflies-128"}
    assert set(MANIFEST) == set(NAMES)


def single_file(config):
    """Names and shapes of a U-Net in a single file."""
    single = export(built(config).state_dict(), ldm_rules(config))
    return {f"model.diffusion_model.{name}": tuple(x.shape) for name, x in single.items()}


@needs_data
@pytest.mark.parametrize("name", sorted(NAMES))
def test_single_files_are_recognised_by_their_tensors(name):
    """Without a configuration they become the network that the published one says."""
    config = from_diffusers(published(name))
    shapes = single_file(config) | {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
    if "upscaler" in name:
        with pytest.raises(ValueError, match=NAMES[name]):
            identify_family(shapes)
        return
    family, channels = identify_family(shapes)
    assert family == NAMES[name]
    assert replace(UNETS[family], in_channels=channels) == config


@pytest.mark.parametrize(
    ("name", "upsamplers", "downsamplers"),
    [
        ("Stable Diffusion 1.x", ["2.1", "5.2", "8.2"], ["3", "6", "9"]),
        ("Stable Diffusion XL", ["2.2", "5.2"], ["3", "6"]),
    ],
)
def test_where_sides_change_in_the_published_single_files(name, upsamplers, downsamplers):
    """Their names as programs that tell these files apart list them: behind a transformer an
    upsampler is the third of its block. Diffusers' converter would take any number.
    """
    config = UNETS[name]
    single = export(built(config).state_dict(), ldm_rules(config))
    found = [key for key in single if re.fullmatch(r"output_blocks\.\d+\.\d\.conv\.weight", key)]
    assert sorted(found) == [f"output_blocks.{place}.conv.weight" for place in upsamplers]
    found = [key for key in single if key.endswith(".op.weight")]
    assert sorted(found) == [f"input_blocks.{block}.0.op.weight" for block in downsamplers]


@needs_data
@pytest.mark.parametrize(
    ("folder", "part", "message"),
    [
        ("FLUX.1-dev", "transformer", "FLUX"),
        ("stable-diffusion-3-medium-diffusers", "transformer", "Stable Diffusion 3"),
        ("stable-cascade", "decoder", "Stable Cascade"),
        ("stable-cascade-prior", "prior", "Stable Cascade"),
        ("ddpm-butterflies-128", "unet", "pixel-diffusion"),
    ],
)
def test_other_families_are_refused_by_name(folder, part, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(published(folder, part))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        (
            {"resnet_time_scale_shift": "ada_group"},
            "resnet_time_scale_shift is 'ada_group'; supported",
        ),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"never_heard_of": 1}, r"never_heard_of \(1\) is not supported"),
        ({"layers_per_block": [1, 2]}, "layers_per_block differs"),
        ({"attention_head_dim": [8, 8, 8]}, "one value for each of 4 levels"),
        ({"down_block_types": ["KDownBlock2D"] * 4}, "KDownBlock2D is not supported"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "do not match"),
        ({"addition_embed_type": "text_time"}, "disagree"),
        ({"projection_class_embeddings_input_dim": 9}, "disagree"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL is not the U-Net"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers({"cross_attention_dim": 768} | changes)


def test_diffusers_has_no_middle_of_its_own_depth():
    with pytest.raises(ValueError, match=r"blocks in the middle \(3\) as in the last level \(1\)"):
        to_diffusers(small(transformers=(0, 1), middle=3))


@pytest.mark.parametrize("channels", [4, 9])
def test_further_channels_are_the_files(channels):
    """Inpainting is its family with more channels in front."""
    config = LatentUNetConfig(in_channels=channels)
    assert identify_family(single_file(config)) == ("Stable Diffusion 1.x", channels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.context_block.x", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("double_stream_modulation_img.lin.weight", r"FLUX\.2"),
        ("model.diffusion_model.input_blocks.1.0.time_stack.x", "Stable Video Diffusion"),
        ("model.diffusion_model.input_blocks.1.0.time_mixer.x", "Stable Video Diffusion"),
        ("clip_txt_pooled_mapper.weight", "Stable Cascade"),
        ("effnet_mapper.0.weight", "Stable Cascade"),
        ("input_hint_block.0.weight", "a ControlNet"),
        ("first_stage_model.decoder.conv_in.weight", "no model.diffusion_model.input_blocks"),
    ],
)
def test_files_without_such_a_unet_are_refused_by_name(name, message):
    shapes = single_file(LatentUNetConfig()) if "first" not in name else {}
    with pytest.raises(ValueError, match=message):
        identify_family(shapes | {name: (1,)})


def test_a_unet_that_is_in_no_table_is_refused_with_its_shapes():
    with pytest.raises(ValueError, match=r"U-Net has 8 channels and reads a context of width 10"):
        identify_family(single_file(small()))

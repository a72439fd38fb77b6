"""Published configurations build on the meta device, with the reference library's names and shapes;
others are refused by name.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests.manifests import FOLDER
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import Clip, ClipConfig
from triptych.systems.siglip import published as siglip
from triptych.systems.siglip.model import Siglip, SiglipConfig
from triptych.weights.keymap import convert, export, fill

DATA = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs"
MANIFESTS = FOLDER
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="TRIPTYCH_DATA is not set")
OPEN_CLIP = json.loads((MANIFESTS / "open_clip.json").read_text())["models"]
SOME_NOW_ALL_NIGHTLY = [
    name if place % 4 == 0 else pytest.param(name, marks=pytest.mark.slow)
    for place, name in enumerate(sorted(OPEN_CLIP))
]
TRANSFORMERS = json.loads((MANIFESTS / "transformers.json").read_text())["models"]


def collapsed(state):
    groups: dict[str, dict[str, list[int]]] = {}
    for name, tensor in state.items():
        groups.setdefault(NUMBER.sub("{}", name), {})[name] = list(tensor.shape)
    result = {}
    for template, members in groups.items():
        shapes = list(members.values())
        if all(shape == shapes[0] for shape in shapes):
            result[template] = [len(shapes), shapes[0]]
        else:
            result |= {name: [1, shape] for name, shape in members.items()}
    return result


def open_clip_model(name: str):
    """Our model on the meta device, and the table of its names."""
    model = json.loads((DATA / "open_clip" / f"{name}.json").read_text())
    with torch.device("meta"):
        if "init_logit_bias" in model:
            config = siglip.from_open_clip(model)
            rules = siglip.open_clip_rules(config.image.naflex)
            return Siglip(config), rules
        config = clip_configs.from_open_clip(model)
        custom = model.get("custom_text", False)
        return Clip(config), clip.openai_rules(config.resnet is not None, custom)


@needs_data
@pytest.mark.parametrize("name", SOME_NOW_ALL_NIGHTLY)
def test_open_clip_towers_have_their_names_and_shapes(name):
    model, rules = open_clip_model(name)
    assert collapsed(export(model.state_dict(), rules)) == OPEN_CLIP[name]


@needs_data
def test_what_is_not_ours_is_refused_by_name():
    refused = {}
    for path in sorted((DATA / "open_clip").glob("*.json")):
        if path.stem in OPEN_CLIP:
            continue
        model = json.loads(path.read_text())
        for family in (clip_configs.from_open_clip, siglip.from_open_clip):
            with pytest.raises(ValueError) as error:
                family(model)
            refused[path.stem] = str(error.value)
    assert len(refused) > 80
    assert "convnext_base" in refused["convnext_base"]
    assert "roberta-base" in refused["roberta-ViT-B-32"]
    assert "CoCa" in refused["coca_ViT-B-32"]
    assert "CLAP" in refused["CLAP-HTSAT-base"]


@needs_data
def test_openai_configurations_are_read_off_the_shapes():
    """OpenAI's archives have no configuration: the shapes must say what the published one says."""
    for name in (
        "RN50-quickgelu",
        "RN50x64-quickgelu",
        "ViT-B-32-quickgelu",
        "ViT-L-14-336-quickgelu",
    ):
        model, rules = open_clip_model(name)
        assert clip_configs.from_openai(export(model.state_dict(), rules)) == model.config


@pytest.mark.parametrize(
    ("name", "family"),
    [("siglip default", siglip), ("siglip2 default", siglip)],
)
def test_transformers_defaults_have_their_names_and_shapes(name, family):
    kind = {"model_type": "siglip2", "vision_config": {"num_patches": 256}}
    config = siglip.from_transformers(kind if "2" in name else {"model_type": "siglip"})
    with torch.device("meta"):
        model = Siglip(config)
    assert collapsed(export(model.state_dict(), siglip.TRANSFORMERS)) == TRANSFORMERS[name]


@needs_data
def test_clip_of_transformers_has_its_names_and_shapes():
    stored = json.loads((DATA / "clip-vit-base-patch32" / "config.json").read_text())
    config = clip_configs.from_transformers(stored)
    assert config == ClipConfig(
        512,
        clip_configs.VitConfig(activation="quick_gelu"),
        text=clip_configs.TextConfig(activation="quick_gelu"),
    )
    with torch.device("meta"):
        model = Clip(config)
    exported = collapsed(export(model.state_dict(), clip.TRANSFORMERS))
    assert exported == TRANSFORMERS["clip-vit-base-patch32"]
    assert clip_configs.from_transformers(clip_configs.to_transformers(config)) == config


@needs_data
@pytest.mark.parametrize("name", SOME_NOW_ALL_NIGHTLY)
def test_configurations_survive_the_way_back(name):
    config = open_clip_model(name)[0].config
    if isinstance(config, SiglipConfig):
        if config.text.projection and not config.image.naflex:
            assert siglip.from_transformers(siglip.to_transformers(config)) == config
        back = siglip.from_open_clip(siglip.to_open_clip(config))
    elif config.text.pool == "end" and config.text.end != config.text.vocabulary - 1:
        with pytest.raises(ValueError, match="another end token"):
            clip_configs.to_open_clip(config)
        return
    else:
        back = clip_configs.from_open_clip(clip_configs.to_open_clip(config))
    assert back == config


def test_a_stack_that_does_not_fit_is_refused():
    with torch.device("meta"):
        small = Siglip(
            SiglipConfig(siglip.SiglipImageConfig(layers=1), siglip.SiglipTextConfig(layers=1))
        )
        larger = Siglip(
            SiglipConfig(siglip.SiglipImageConfig(layers=2), siglip.SiglipTextConfig(layers=1))
        )
    state = export(larger.state_dict(), siglip.TRANSFORMERS)
    with pytest.raises(ValueError, match="is unknown"):
        fill(small, convert(state, siglip.TRANSFORMERS))


@pytest.mark.parametrize(
    ("part", "pool"),
    [
        *(("text_cfg", pool) for pool in ("first", "none", "", "cls", 3, ["last"])),
        *(("vision_cfg", pool) for pool in ("none", "", "map", None)),
    ],
)
def test_what_is_read_of_a_tower_is_supported_or_refused_by_name(part: str, pool) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{part} has the pool_type {pool!r}, which")):
        clip_configs.from_open_clip({"embed_dim": 64, part: {"pool_type": pool}})


@pytest.mark.parametrize(
    ("change", "words"),
    [({"pool_type": "first"}, "'first', which is"), ({"no_causal_mask": False}, "a causal mask")],
)
def test_a_text_tower_that_is_not_siglips_is_refused(change, words: str) -> None:
    text = {"pool_type": "last", "no_causal_mask": True, "width": 768}
    vision = {"timm_model_name": "vit_base_patch16_siglip_224"}
    model = {"init_logit_bias": -10, "vision_cfg": vision, "text_cfg": text}
    siglip.from_open_clip(model)
    with pytest.raises(ValueError, match=words):
        siglip.from_open_clip(model | {"text_cfg": text | change})

"""No configuration of a model, whoever wrote it, makes loading or building endless."""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import save_file

from tests.systems.stable_diffusion import tiny_stable_diffusion
from triptych.cli.main import run
from triptych.config import BadFile
from triptych.doctor import examine
from triptych.fields import LARGEST, LONGEST, from_json, to_json
from triptych.loading import find_kind, load, read_config
from triptych.nn.bag_of_words import CbowConfig
from triptych.systems import KINDS
from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.systems.autoencoder.tiny_model import TinyAutoencoderConfig
from triptych.systems.classifier.model import ClassifierConfig
from triptych.systems.clip.model import ClipConfig, TextConfig, VitConfig
from triptych.systems.clip.resnet import ResNetConfig
from triptych.systems.cvae.model import CvaeConfig
from triptych.systems.gemma.model import GemmaConfig
from triptych.systems.mask_codes.model import MaskCodesConfig
from triptych.systems.pali.model import PaliConfig
from triptych.systems.pali.t5 import T5Config
from triptych.systems.paligemma.model import PaliGemmaConfig
from triptych.systems.pixel_diffusion.model import PixelDiffusionConfig
from triptych.systems.siglip.model import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.systems.unclip.autoregressive import AutoregressiveConfig
from triptych.systems.unclip.decoder import DecoderConfig
from triptych.systems.unclip.model import UnclipConfig
from triptych.systems.unclip.prior import PriorConfig
from triptych.systems.unclip.upsampler import UpsamplerConfig
from triptych.systems.wgan.model import WganConfig
from triptych.systems.word_space.model import WordSpaceConfig
from triptych.weights import skeleton
from triptych.weights.layouts import layout

CODER = AutoencoderConfig(1, 2, (4, 4), 1, 2, channel_means=(0.0, 0.0), channel_stds=(1.0, 1.0))
CLASSIFIER = ClassifierConfig(8, 8, 1, (2,), (4, 4))
VIT = VitConfig(16, 8, 8, 1, 2, 16, stem=(4, 4, 4), stem_group=2)
TEXT = TextConfig(20, 8, 8, 1, 2, 16, end=19)
LATENTS = replace(CODER, latent_channels=4, channel_means=(0.0,) * 4, channel_stds=(1.0,) * 4)
STABLE = tiny_stable_diffusion.config()
SMALL: dict[str, tuple[Any, ...]] = {  # of each kind: together with a value in every field
    "cvae": (CvaeConfig(8, 8, 1, "label", 3, 2, "mlp", (8,)),),
    "wgan": (
        WganConfig(8, 8, 1, "label", 3, 4, (4,), (4,), generator_hidden=(4,), critic_hidden=(4,)),
    ),
    "pixel-diffusion": (
        PixelDiffusionConfig(
            8, 8, 1, "label", 3, (8, 8), 1, (1,), head_width=4, time_width=8, groups=2
        ),
    ),
    "classifier": (CLASSIFIER,),
    "clip": (
        ClipConfig(8, VIT, None, TEXT),
        ClipConfig(8, None, ResNetConfig(32, 2, (1, 1, 1, 1), 2), None, CbowConfig(20, 8, 8)),
    ),
    "siglip": (
        SiglipConfig(
            SiglipImageConfig(16, 8, 8, 1, 2, 16, stem=(4, 4, 4), stem_group=2),
            SiglipTextConfig(20, 8, 8, 1, 2, 16),
        ),
        SiglipConfig(SiglipImageConfig(16, 8, 8, 1, 2, 16), None, CbowConfig(20, 8, 8)),
    ),
    "mask-codes": (MaskCodesConfig((2, 2, 2, 2), 8, 4),),
    "gemma": (GemmaConfig(9, 8, 2, 2, 1, 4, 8, 16, attention_cap=5.0, logit_cap=3.0, window=4),),
    "paligemma": (
        PaliGemmaConfig(
            SiglipImageConfig(16, 8, 8, 1, 2, 16, stem=(4, 4, 4), stem_group=2, pooled=False),
            GemmaConfig(9, 8, 2, 2, 1, 4, 8, 16, attention_cap=5.0, logit_cap=3.0, window=4),
            MaskCodesConfig((2, 2, 2, 2), 8, 4),
        ),
    ),
    "pali": (
        PaliConfig(
            SiglipImageConfig(16, 8, 8, 1, 2, 16, stem=(4, 4, 4), stem_group=2, pooled=False),
            T5Config(9, 8, 1, 1, 2, 4, 8, 4, 6, 16),
            MaskCodesConfig((2, 2, 2, 2), 8, 4),
        ),
    ),
    "word-space": (WordSpaceConfig(CLASSIFIER, (0, 1), 3, 4, "socher", 4, points=8, neighbours=2),),
    "autoencoder": (CODER,),
    "tiny-autoencoder": (TinyAutoencoderConfig(1, 2, 4, (1, 1)),),
    "stable-diffusion": (
        replace(
            STABLE,
            unet=replace(STABLE.unet, only_context=(0,)),
            text=(replace(STABLE.text[0], dim=8),),
            autoencoder=LATENTS,
        ),
        replace(STABLE, autoencoder=None, tiny=TinyAutoencoderConfig(1, 4, 4, (1, 1))),
    ),
    "unclip": (
        UnclipConfig(
            8,
            TEXT,
            VIT,
            prior=PriorConfig(8, 8, 8, 8, 1, 2, 16),
            autoregressive=AutoregressiveConfig(8, 8, 8, 2, 4, 4, 8, 1, 2, 16),
            components=2,
            decoder=DecoderConfig(
                8, 8, 8, 1, 2, 4, (8,), 1, (0,), head_width=4, time_width=8, groups=2
            ),
            upsamplers=(UpsamplerConfig(8, 16, 1, (8,), 1, time_width=8, groups=2, last=True),),
        ),
    ),
    "unclip-prior": (PriorConfig(8, 8, 8, 8, 1, 2, 16),),
    "unclip-autoregressive": (AutoregressiveConfig(8, 8, 8, 2, 4, 4, 8, 1, 2, 16),),
    "unclip-decoder": (
        DecoderConfig(8, 8, 8, 1, 2, 4, (8,), 1, (0,), head_width=4, time_width=8, groups=2),
    ),
    "unclip-upsampler": (UpsamplerConfig(8, 16, 1, (8,), 1, time_width=8, groups=2, last=True),),
}  # fmt: skip


ELSEWHERE = {"unclip": ("text", "image", "prior", "autoregressive", "decoder", "upsamplers")}
"""Parts of a model that are tested as models of their own."""


def places(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, type, Any]]:
    """The path of every number of a configuration in JSON, and of every list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield path, list, value
        for index, inner in enumerate(value[:1]):
            yield from places(inner, (*path, index))
    elif type(value) in (int, float):
        yield path, type(value), value


def changed(stored: Any, path: tuple, value: Any) -> Any:
    stored = json.loads(json.dumps(stored))
    inner = stored
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return stored


def classes(kind: type) -> Iterator[type]:
    """A configuration and those inside it."""
    yield kind
    waiting = list(get_type_hints(kind).values())
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if is_dataclass(hint):
            yield from classes(hint)  # type: ignore[arg-type]


CASES = [(name, at) for name in KINDS for at in range(len(SMALL[name]))]


def build(name: str, stored: Any) -> None:
    """What `load` does of a run folder before it reads tensors."""
    kind = find_kind(name)
    skeleton.skeleton(lambda: kind.build(from_json(kind.config, stored)))


@pytest.mark.parametrize(("name", "at"), CASES)
def test_no_number_is_unbounded(name: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "MOST_TENSORS", 400)  # so that it is quick
    stored = to_json(SMALL[name][at])
    build(name, stored)
    found = list(places(stored))
    assert found
    before = list(places(to_json(SMALL[name][0]))) if at else []
    for path, kind, inner in found:
        if (path, kind, inner) in before or path[0] in ELSEWHERE.get(name, ()):  # tested there
            continue
        where = ".".join(map(str, path))
        field = [step for step in path if isinstance(step, str)][-1]
        if kind is list:
            with pytest.raises(ValueError, match="values"):
                build(name, changed(stored, path, inner[:1] * (LONGEST + 1)))
            continue
        bad = (10**9, 10**30, -1, True) if kind is int else (float("nan"), float("inf"), "1")
        for value in bad:
            with pytest.raises(ValueError, match=field):
                from_json(find_kind(name).config, changed(stored, path, value))
                pytest.fail(f"{where} = {value} was accepted")
        for value in (0, LARGEST) if kind is int else ():  # either is fine, but nothing else
            try:
                build(name, changed(stored, path, value))
            except ValueError as error:
                assert "Error" not in f"{error}", (where, value)


def test_every_field_is_among_them() -> None:
    for name in KINDS:
        tested = {
            (type(config), field.name)
            for whole in SMALL[name]
            for config in parts(whole)
            for field in fields(config)
            if getattr(config, field.name) not in ((), None)
        }
        every = {(kind, f.name) for kind in classes(find_kind(name).config) for f in fields(kind)}
        assert every <= tested, every - tested


def parts(config: Any) -> Iterator[Any]:
    yield config
    for field in fields(config):
        value = getattr(config, field.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if is_dataclass(inner):
                yield from parts(inner)


HUGE: dict[str, tuple[str, dict[str, Any]]] = {
    "run": ("config.json", {"model": "clip", "config": to_json(SMALL["clip"][0])}),
    "transformers": (
        "config.json",
        {
            "model_type": "clip",
            "vision_config": {"num_hidden_layers": 1, "num_attention_heads": 12, "image_size": 32},
            "text_config": {"num_hidden_layers": 1, "vocab_size": 9, "layer_norm_eps": 1e-5},
        },
    ),
    "siglip": (
        "config.json",
        {
            "model_type": "siglip2",
            "vision_config": {"num_hidden_layers": 1, "num_patches": 4, "patch_size": 16},
            "text_config": {"num_hidden_layers": 1, "vocab_size": 9},
        },
    ),
    "open_clip": (
        "open_clip_config.json",
        {
            "model_cfg": {
                "embed_dim": 64,
                "vision_cfg": {
                    "layers": 1, "width": 64, "patch_size": 8, "image_size": 16, "head_width": 32,
                    "mlp_ratio": 2.0, "pool_type": "tok",
                },
                "text_cfg": {"layers": 1, "width": 64, "heads": 2, "vocab_size": 9, "mlp_ratio": 2},
            },
            "preprocess_cfg": {"size": [16, 16], "mean": [0.5, 0.5, 0.5]},
        },
    ),
    "open_clip siglip": (
        "open_clip_config.json",
        {
            "model_cfg": {
                "init_logit_bias": -10,
                "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "image_size": 32},
                "text_cfg": {
                    "layers": 1, "vocab_size": 9, "mlp_ratio": 2.0, "width": 768,
                    "norm_kwargs": {"eps": 1e-6}, "pool_type": "last", "no_causal_mask": True,
                },
            },
        },
    ),
    "autoencoder": (
        "config.json",
        {
            "_class_name": "AutoencoderKL", "block_out_channels": [32], "layers_per_block": 1,
            "latent_channels": 4, "scaling_factor": 0.2, "norm_num_groups": 32,
            "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        },
    ),
    "tiny autoencoder": (
        "config.json",
        {
            "_class_name": "AutoencoderTiny", "num_encoder_blocks": [1, 1], "in_channels": 3,
            "num_decoder_blocks": [1, 1], "latent_channels": 4,
        },
    ),
}  # fmt: skip
"""Configurations of each layout that are sound."""


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Everything in a JSON value, and its path."""
    if path:
        yield path, value
    if isinstance(value, list):
        value = dict(enumerate(value))
    for step, inner in value.items() if isinstance(value, dict) else ():
        yield from nodes(inner, (*path, step))


@pytest.mark.parametrize("name", HUGE)
def test_any_value_anywhere_in_a_configuration_of_any_layout_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeleton, "MOST_TENSORS", 400)
    file, stored = HUGE[name]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(stored))
    assert read_config(layout(tmp_path)) is not None
    for path, inner in nodes(stored):
        for value in (None, "x", [[]], {"a": 1}, -1, 0, 10**9, 10**30, float("nan")):
            (tmp_path / file).write_text(json.dumps(changed(stored, path, value)))
            with pytest.raises(ValueError):  # if only because the weights are of no model
                load(str(tmp_path))
                pytest.fail(f"{path} = {value!r} was loaded")
            if value == 10**9 and type(inner) is int and "bias" not in f"{path}":
                assert any(finding.fault for finding in examine(tmp_path)), path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *(("open_clip", ("model_cfg", "vision_cfg", n)) for n in ("width", "mlp_ratio")),
        ("open_clip", ("model_cfg", "vision_cfg", "head_width")),
        *(("open_clip", ("model_cfg", "text_cfg", n)) for n in ("width", "mlp_ratio")),
        *(("open_clip siglip", ("model_cfg", "text_cfg", n)) for n in ("width", "mlp_ratio")),
        ("open_clip siglip", ("model_cfg", "vision_cfg", "image_seq_len")),
        *(("siglip", ("vision_config", n)) for n in ("patch_size", "num_patches")),
    ],
)  # fmt: skip
def test_what_sizes_are_computed_from_are_numbers(name: str, path: tuple, tmp_path: Path) -> None:
    """A width of "x" times a ratio of 10**9 would be a text of a gigabyte."""
    file, stored = HUGE[name]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    for value in ("x", [1], True, 0, -1, 10**7, 10**30, float("nan"), float("inf")):
        (tmp_path / file).write_text(json.dumps(changed(stored, path, value)))
        with pytest.raises(BadFile, match=f"{path[-1]} must be a number above 0, up to 1,048"):
            load(str(tmp_path))


@pytest.mark.parametrize("heads", [10**9, 0, -1, 7])
def test_a_command_says_so_in_a_sentence_and_exits_with_3(
    heads: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, stored = HUGE["transformers"]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_text(
        json.dumps(changed(stored, ("vision_config", "num_attention_heads"), heads))
    )
    for command in (["embed", "--model", str(tmp_path), "--text", "a"],
                    ["weights", "convert", str(tmp_path), str(tmp_path / "x"), "--to", "triptych"],
                    ["weights", "doctor", str(tmp_path)]):  # fmt: skip
        assert run(command) == 3
        said = capsys.readouterr()
        text = said.out + said.err
        assert "config.json: vision_config: " in text and f"{heads}" in text

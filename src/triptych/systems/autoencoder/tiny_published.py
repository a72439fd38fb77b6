"""Tiny autoencoders: TAESD's own two files and diffusers' one, which count layers in a row."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from triptych.systems.autoencoder.tiny_model import TinyAutoencoderConfig
from triptych.weights.diffusers_names import layer
from triptych.weights.keymap import Rule, rename, under

BLOCK = [
    *layer("conv.0", "conv1"),
    *layer("conv.2", "conv2"),
    *layer("conv.4", "conv3"),
    rename("pool.0.weight", "overall.up.weight"),
    *layer("pool.1", "overall.norm"),
    rename("pool.3.weight", "overall.down.weight"),
]


def encoder_rules(config: TinyAutoencoderConfig) -> list[Rule]:
    """`taesd_encoder.pth` and its like."""
    rules, place = layer("0", "encoder.conv_in"), 1
    for level, blocks in enumerate(config.blocks):
        if level > 0:
            rules.append(rename(f"{place}.weight", f"encoder.downsample.{level - 1}.weight"))
            place += 1
        for block in range(blocks):
            rules += under(BLOCK, f"{place}.", f"encoder.levels.{level}.{block}.")
            place += 1
    return [*rules, *layer(f"{place}", "encoder.conv_out")]


def decoder_rules(config: TinyAutoencoderConfig, first: int = 1) -> list[Rule]:
    """`taesd_decoder.pth` and its like; the bend before its first layer is a layer there."""
    rules, place = layer(f"{first}", "decoder.conv_in"), first + 2  # an activation between
    for level, blocks in enumerate(reversed(config.blocks)):
        if level > 0:
            place += 1  # twice the side, without weights
            rules.append(rename(f"{place}.weight", f"decoder.upsample.{level - 1}.weight"))
            place += 1
        for block in range(blocks):
            rules += under(BLOCK, f"{place}.", f"decoder.levels.{level}.{block}.")
            place += 1
    return [*rules, *layer(f"{place}", "decoder.conv_out")]


def diffusers_rules(config: TinyAutoencoderConfig) -> list[Rule]:
    """Both in one file; `taef2.safetensors` is named so too."""
    return [
        *under(encoder_rules(config), "encoder.layers."),
        *under(decoder_rules(config, first=0), "decoder.layers."),
    ]


def from_taesd(encoder: Mapping[str, Tensor]) -> TinyAutoencoderConfig:
    """The configuration of an encoder's file of eightfold reduction, read off its shapes.

    Raises:
        ValueError: the tensors of another kind of model.
    """
    last = max((int(name.split(".")[0]) for name in encoder if name[:1].isdigit()), default=-1)
    if last != 14 or not {"0.weight", "1.conv.0.weight", "2.weight"} <= encoder.keys():
        raise ValueError(
            "these are not the tensors of a TAESD encoder of eightfold reduction, whose layers are "
            "0 to 14"
        )
    width, channels = encoder["0.weight"].shape[:2]
    return TinyAutoencoderConfig(
        channels=channels,
        latent_channels=encoder["14.weight"].shape[0],
        width=width,
        global_norm=any(".pool." in name for name in encoder),
    )


PLAIN: dict[str, Any] = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
"""What every published tiny autoencoder says."""
WIDTHS = ("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels")
KNOWN = {
    "force_upcast",
    *("num_encoder_blocks", "num_decoder_blocks", "in_channels", "out_channels"),
    "latent_channels",
}


def from_diffusers(config: Mapping[str, Any]) -> TinyAutoencoderConfig:
    """A diffusers `config.json` of class AutoencoderTiny; what it leaves out has its defaults.

    Raises:
        ValueError: a configuration of another family, or one that is unknown here.
    """
    kind = config.get("_class_name", "AutoencoderTiny")
    if kind != "AutoencoderTiny":
        raise ValueError(f"{kind} is not diffusers' AutoencoderTiny")
    fields = {name for name in config if not name.startswith("_")}  # not what is of diffusers' own
    if unknown := sorted(fields - PLAIN.keys() - KNOWN - {*WIDTHS}):
        raise ValueError(f"the tiny autoencoder's configuration has unknown fields: {unknown}")
    for name, value in PLAIN.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} {config[name]!r} is unknown here; known is {value!r}")
    blocks = tuple(config.get("num_encoder_blocks", (1, 3, 3, 3)))
    if tuple(config.get("num_decoder_blocks", (3, 3, 3, 1))) != blocks[::-1]:
        raise ValueError("num_decoder_blocks must be num_encoder_blocks in reverse order")
    widths = {width for name in WIDTHS for width in config.get(name, ())} or {64}
    if len(widths) != 1:
        raise ValueError(f"all levels must have as many channels; here are {sorted(widths)}")
    channels = config.get("in_channels", 3)
    if config.get("out_channels", 3) != channels:
        raise ValueError("in_channels and out_channels differ, which an autoencoder's cannot")
    return TinyAutoencoderConfig(channels, config.get("latent_channels", 4), widths.pop(), blocks)


def to_diffusers(config: TinyAutoencoderConfig) -> dict[str, Any]:
    """Our configuration as a diffusers `config.json`.

    Raises:
        ValueError: diffusers has no tiny autoencoder of FLUX.2's form.
    """
    if config.global_norm:
        raise ValueError("diffusers' AutoencoderTiny has no global norm: keep TAESD's own form")
    return {
        "_class_name": "AutoencoderTiny",
        **PLAIN,
        **{name: [config.width] * len(config.blocks) for name in WIDTHS},
        "force_upcast": False,
        "in_channels": config.channels,
        "latent_channels": config.latent_channels,
        "num_decoder_blocks": list(config.blocks[::-1]),
        "num_encoder_blocks": list(config.blocks),
        "out_channels": config.channels,
    }

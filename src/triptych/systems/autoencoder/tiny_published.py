"""TAESD: key maps for its two files and for diffusers' one, and diffusers' configuration.

All of them name layers by their index in an `nn.Sequential`.
"""

from collections.abc import Mapping, Sequence
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
    """The names in files such as `taesd_encoder.pth`."""
    return _rules("encoder", "downsample", config.blocks, place=0)


def decoder_rules(config: TinyAutoencoderConfig, first: int = 1) -> list[Rule]:
    """The names in files such as `taesd_decoder.pth`, where layer 0 is the clamp of the input."""
    return _rules("decoder", "upsample", config.blocks[::-1], place=first)


def _rules(end: str, resize: str, levels: Sequence[int], place: int) -> list[Rule]:
    """The rules of one end, whose first layer is at `place`."""
    without_weights = int(end == "decoder")  # an activation after the first layer, upsampling
    rules = layer(f"{place}", f"{end}.conv_in")
    place += 1 + without_weights
    for level, blocks in enumerate(levels):
        if level > 0:
            place += without_weights
            rules.append(rename(f"{place}.weight", f"{end}.{resize}.{level - 1}.weight"))
            place += 1
        for block in range(blocks):
            rules += under(BLOCK, f"{place}.", f"{end}.levels.{level}.{block}.")
            place += 1
    return [*rules, *layer(f"{place}", f"{end}.conv_out")]


def diffusers_rules(config: TinyAutoencoderConfig) -> list[Rule]:
    """Diffusers' names, encoder and decoder in one file; also those of `taef2.safetensors`."""
    return [
        *under(encoder_rules(config), "encoder.layers."),
        *under(decoder_rules(config, first=0), "decoder.layers."),
    ]


def from_taesd(encoder: Mapping[str, Tensor]) -> TinyAutoencoderConfig:
    """The configuration of a TAESD encoder with a factor of 8, from the shapes of its tensors.

    Raises:
        ValueError: they are the tensors of another model.
    """
    last = max((int(name.split(".")[0]) for name in encoder if name[:1].isdigit()), default=-1)
    if last != 14 or not {"0.weight", "1.conv.0.weight", "2.weight"} <= encoder.keys():
        raise ValueError(
            "these are not the tensors of a TAESD encoder with a factor of 8 (layers 0 to 14)"
        )
    width, channels = encoder["0.weight"].shape[:2]
    return TinyAutoencoderConfig(
        channels=channels,
        latent_channels=encoder["14.weight"].shape[0],
        width=width,
        global_norm=any(".pool." in name for name in encoder),
    )


FIXED: dict[str, Any] = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
"""Fields that have the same value in all published tiny autoencoders."""
WIDTHS = ("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels")
OTHER_FIELDS = {
    "force_upcast",
    *("num_encoder_blocks", "num_decoder_blocks", "in_channels", "out_channels"),
    "latent_channels",
}


def from_diffusers(config: Mapping[str, Any]) -> TinyAutoencoderConfig:
    """Parse the `config.json` of an AutoencoderTiny; missing fields have diffusers' defaults.

    Raises:
        ValueError: the autoencoder is of another family, or a field is not supported.
    """
    kind = config.get("_class_name", "AutoencoderTiny")
    if kind != "AutoencoderTiny":
        raise ValueError(f"{kind} is not diffusers' AutoencoderTiny")
    fields = {name for name in config if not name.startswith("_")}
    if unknown := sorted(fields - FIXED.keys() - OTHER_FIELDS - {*WIDTHS}):
        raise ValueError(f"the tiny autoencoder's configuration has unknown fields: {unknown}")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} is {config[name]!r}; supported: {value!r}")
    blocks = tuple(config.get("num_encoder_blocks", (1, 3, 3, 3)))
    if tuple(config.get("num_decoder_blocks", (3, 3, 3, 1))) != blocks[::-1]:
        raise ValueError("num_decoder_blocks must be num_encoder_blocks in reverse order")
    widths = {width for name in WIDTHS for width in config.get(name, ())} or {64}
    if len(widths) != 1:
        raise ValueError(f"all levels must have the same number of channels, not {sorted(widths)}")
    channels = config.get("in_channels", 3)
    if config.get("out_channels", 3) != channels:
        raise ValueError("in_channels and out_channels differ, which is not supported")
    return TinyAutoencoderConfig(channels, config.get("latent_channels", 4), widths.pop(), blocks)


def to_diffusers(config: TinyAutoencoderConfig) -> dict[str, Any]:
    """Write a diffusers `config.json`.

    Raises:
        ValueError: the configuration is FLUX.2's, which diffusers does not have.
    """
    if config.global_norm:
        raise ValueError("diffusers' AutoencoderTiny has no global norm: keep TAESD's format")
    return {
        "_class_name": "AutoencoderTiny",
        **FIXED,
        **{name: [config.width] * len(config.blocks) for name in WIDTHS},
        "force_upcast": False,
        "in_channels": config.channels,
        "latent_channels": config.latent_channels,
        "num_decoder_blocks": list(config.blocks[::-1]),
        "num_encoder_blocks": list(config.blocks),
        "out_channels": config.channels,
    }

"""The KL autoencoder: key maps for diffusers and LDM, and diffusers' configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.weights.diffusers_names import layer
from triptych.weights.keymap import Rule, under


def projections(theirs: tuple[str, str, str, str], form: str = "") -> list[Rule]:
    """The projections of the attention, which LDM stores as 1 x 1 convolutions."""
    ours = ("q_proj", "k_proj", "v_proj", "out_proj")
    pairs = zip(theirs, ours, strict=True)
    return [rule for name, our in pairs for rule in layer(name, f"attention.{our}", form)]


RESIDUAL = [rule for name in ("norm1", "conv1", "norm2", "conv2") for rule in layer(name, name)]

ENDS = [
    *(
        rule
        for way in ("encoder", "decoder")
        for name in ("conv_in", "conv_out")
        for rule in layer(f"{way}.{name}", f"{way}.{name}")
    ),
    *layer("quant_conv", "encoder.quant_conv"),
    *layer("post_quant_conv", "decoder.post_quant_conv"),
]
"""Layers with the same names in diffusers and LDM."""


def diffusers_rules(names: Iterable[str] = ()) -> list[Rule]:
    """The names in a diffusers folder. Files of 2022 have other names in the attention, which is
    decided by `names`, the tensors of the file.
    """
    old = any(".query." in name for name in names)
    attention = (
        ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    )
    residual = [*RESIDUAL, *layer("conv_shortcut", "shortcut")]
    rules = [
        *ENDS,
        *under(residual, "encoder.down_blocks.{}.resnets.{}.", "encoder.down.{}.blocks.{}."),
        *layer("encoder.down_blocks.{}.downsamplers.0.conv", "encoder.down.{}.downsample.conv"),
        *under(residual, "decoder.up_blocks.{}.resnets.{}.", "decoder.up.{}.blocks.{}."),
        *layer("decoder.up_blocks.{}.upsamplers.0.conv", "decoder.up.{}.upsample.conv"),
    ]
    for way in ("encoder", "decoder"):
        middle = [*layer("group_norm", "norm"), *projections(attention)]
        rules += [
            *under(residual, f"{way}.mid_block.resnets.0.", f"{way}.middle.first."),
            *under(middle, f"{way}.mid_block.attentions.0.", f"{way}.middle.attention."),
            *under(residual, f"{way}.mid_block.resnets.1.", f"{way}.middle.second."),
            *layer(f"{way}.conv_norm_out", f"{way}.norm_out"),
        ]
    return rules


def ldm_rules(levels: int) -> list[Rule]:
    """LDM's names, in a complete checkpoint under `first_stage_model.`

    The levels of the decoder are numbered from the finest; the projections of the attention are
    1 x 1 convolutions.
    """
    residual = [*RESIDUAL, *layer("nin_shortcut", "shortcut")]
    rules = [
        *ENDS,
        *under(residual, "encoder.down.{}.block.{}.", "encoder.down.{}.blocks.{}."),
        *layer("encoder.down.{}.downsample.conv", "encoder.down.{}.downsample.conv"),
    ]
    for level in range(levels):
        theirs, ours = f"decoder.up.{level}", f"decoder.up.{levels - 1 - level}"
        rules += under(residual, f"{theirs}.block.{{}}.", f"{ours}.blocks.{{}}.")
        rules += layer(f"{theirs}.upsample.conv", f"{ours}.upsample.conv")
    for way in ("encoder", "decoder"):
        middle = [*layer("norm", "norm"), *projections(("q", "k", "v", "proj_out"), "1 x 1")]
        rules += [
            *under(residual, f"{way}.mid.block_1.", f"{way}.middle.first."),
            *under(middle, f"{way}.mid.attn_1.", f"{way}.middle.attention."),
            *under(residual, f"{way}.mid.block_2.", f"{way}.middle.second."),
            *layer(f"{way}.norm_out", f"{way}.norm_out"),
        ]
    return rules


def without_loss(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of LDM without the perceptual network and discriminator of its training."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


OTHERS = {
    "AsymmetricAutoencoderKL": "an autoencoder with a larger decoder",
    "AutoencoderKLFlux2": "FLUX.2's autoencoder, whose latents are patches",
    "AutoencoderTiny": "a tiny autoencoder",
    "ConsistencyDecoderVAE": "a consistency decoder",
    "PaellaVQModel": "Stable Cascade's quantised autoencoder",
    "VQModel": "a quantised autoencoder",
}
IGNORED = {"force_upcast", "sample_size"}
"""Not part of the architecture; our decoder handles overflow in half precision itself."""
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
SIZES = {
    "in_channels": "channels",
    "latent_channels": "latent_channels",
    "layers_per_block": "blocks",
    "norm_num_groups": "groups",
    "mid_block_add_attention": "attention",
    "scaling_factor": "scale",
}
OTHER_FIELDS = {
    *("act_fn", "block_out_channels", "out_channels", "use_quant_conv", "use_post_quant_conv"),
    *("shift_factor", "latents_mean", "latents_std"),
}


def from_diffusers(config: Mapping[str, Any]) -> AutoencoderConfig:
    """Parse a diffusers `vae/config.json`; missing fields have diffusers' defaults.

    Raises:
        ValueError: the autoencoder is of another family, or a field is not supported.
    """
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        what = f" ({OTHERS[kind]})" if kind in OTHERS else ""
        raise ValueError(f"{kind}{what} is not the KL autoencoder of Stable Diffusion")
    fields = {name for name in config if not name.startswith("_")}
    if unknown := sorted(fields - IGNORED - SIZES.keys() - BLOCKS.keys() - OTHER_FIELDS):
        raise ValueError(f"the autoencoder's configuration has unknown fields: {unknown}")
    widths = tuple(config.get("block_out_channels", (64,)))
    for name, plain in BLOCKS.items():
        kinds = list(config.get(name, [plain]))
        if kinds != [plain] * len(widths):
            raise ValueError(
                f"{name} must be {plain} for each of {len(widths)} levels, not {kinds}"
            )
    if config.get("act_fn", "silu") not in ("silu", "swish"):
        raise ValueError(f"act_fn is {config['act_fn']!r}; supported: 'silu'")
    sizes = {ours: config[theirs] for theirs, ours in SIZES.items() if theirs in config}
    sizes.setdefault("blocks", 1)  # diffusers' default
    if config.get("out_channels", 3) != sizes.setdefault("channels", 3):
        raise ValueError("in_channels and out_channels differ, which is not supported")
    convs = [config.get(name, True) for name in ("use_quant_conv", "use_post_quant_conv")]
    if convs[0] != convs[1]:
        raise ValueError("use_quant_conv and use_post_quant_conv differ, which is not supported")
    return AutoencoderConfig(
        **sizes,
        widths=widths,
        quant_conv=convs[0],
        shift=config.get("shift_factor") or 0.0,
        channel_means=tuple(config.get("latents_mean") or ()),
        channel_stds=tuple(config.get("latents_std") or ()),
    )


def to_diffusers(config: AutoencoderConfig) -> dict[str, Any]:
    """Write a diffusers `vae/config.json`."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        **{name: [kind] * levels for name, kind in BLOCKS.items()},
        "force_upcast": True,
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "latents_mean": list(config.channel_means) or None,
        "latents_std": list(config.channel_stds) or None,
        "out_channels": config.channels,
        "shift_factor": config.shift or None,
        "use_post_quant_conv": config.quant_conv,
        "use_quant_conv": config.quant_conv,
    }

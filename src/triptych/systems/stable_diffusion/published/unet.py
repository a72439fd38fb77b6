"""The U-Net of Stable Diffusion: key maps for diffusers and LDM, and diffusers' configuration."""

from collections.abc import Mapping
from typing import Any, Literal

from triptych.systems.stable_diffusion.unet import LatentUNetConfig
from triptych.weights.diffusers_names import RESIDUAL, UNET, check_fields, layer
from triptych.weights.keymap import Rule, rename, split, under

ATTENTION = [
    *(rename(f"to_{x}.weight", f"{x}_proj.weight") for x in "qkv"),
    *layer("to_out.0", "out_proj"),
]

BLOCK = [
    *layer("norm1", "attn_norm"),
    *under(ATTENTION, "attn1.", "attn."),
    *layer("norm2", "context_norm"),
    *under(ATTENTION, "attn2.", "context_attn."),
    *layer("norm3", "mlp_norm"),
    *(split(f"ff.net.0.proj.{x}", f"mlp.up.{x}", f"mlp.gate.{x}") for x in ("weight", "bias")),
    *layer("ff.net.2", "mlp.down"),
]
"""A transformer block, with the same names in diffusers and LDM."""


def transformer_rules(config: LatentUNetConfig) -> list[Rule]:
    """A spatial transformer, with the same names in diffusers and LDM."""
    form = "1 x 1" if config.projections == "convolution" else ""
    return [
        *layer("norm", "norm"),
        *layer("proj_in", "proj_in", form),
        *layer("proj_out", "proj_out", form),
        *under(BLOCK, "transformer_blocks.{}.", "blocks.{}."),
    ]


LDM_RESIDUAL = [
    *layer("in_layers.0", "norm1"),
    *layer("in_layers.2", "conv1"),
    *layer("emb_layers.1", "feature_proj"),
    *layer("out_layers.0", "norm2"),
    *layer("out_layers.3", "conv2"),
    *layer("skip_connection", "shortcut"),
]


def ldm_rules(config: LatentUNetConfig) -> list[Rule]:
    """LDM's names, under `model.diffusion_model.`; blocks are numbered across levels."""
    inside = transformer_rules(config)
    rules = [
        *layer("time_embed.0", "time.up"),
        *layer("time_embed.2", "time.down"),
        *layer("label_emb.0.0", "added.up"),
        *layer("label_emb.0.2", "added.down"),
        rename("label_emb.weight", "label.weight"),
        *layer("input_blocks.0.0", "conv_in"),
        *under(LDM_RESIDUAL, "middle_block.0.", "middle.first."),
        *under(inside, "middle_block.1.", "middle.transformer."),
        *under(LDM_RESIDUAL, "middle_block.2.", "middle.second."),
        *layer("out.0", "norm_out"),
        *layer("out.2", "conv_out"),
    ]
    count = config.blocks + 1
    last = len(config.widths) - 1
    for level in range(last + 1):
        for block in range(config.blocks):
            theirs = f"input_blocks.{1 + level * count + block}"
            rules += under(LDM_RESIDUAL, f"{theirs}.0.", f"down.{level}.blocks.{block}.residual.")
            if config.transformers[level]:
                rules += under(inside, f"{theirs}.1.", f"down.{level}.blocks.{block}.transformer.")
        if level < last:
            theirs = f"input_blocks.{(level + 1) * count}.0.op"
            rules += layer(theirs, f"down.{level}.downsample.conv")
    for step, depth in enumerate(reversed(config.transformers)):
        for block in range(count):
            theirs = f"output_blocks.{step * count + block}"
            rules += under(LDM_RESIDUAL, f"{theirs}.0.", f"up.{step}.blocks.{block}.residual.")
            if depth:
                rules += under(inside, f"{theirs}.1.", f"up.{step}.blocks.{block}.transformer.")
        if step < last:
            theirs = f"output_blocks.{step * count + count - 1}.{2 if depth else 1}.conv"
            rules += layer(theirs, f"up.{step}.upsample.conv")
    return rules


def diffusers_rules(config: LatentUNetConfig) -> list[Rule]:
    """The names in a diffusers folder."""
    inside = transformer_rules(config)
    return [
        *UNET,
        *layer("add_embedding.linear_1", "added.up"),
        *layer("add_embedding.linear_2", "added.down"),
        rename("class_embedding.weight", "label.weight"),
        *under(inside, "down_blocks.{}.attentions.{}.", "down.{}.blocks.{}.transformer."),
        *under(RESIDUAL, "mid_block.resnets.0.", "middle.first."),
        *under(inside, "mid_block.attentions.0.", "middle.transformer."),
        *under(RESIDUAL, "mid_block.resnets.1.", "middle.second."),
        *under(inside, "up_blocks.{}.attentions.{}.", "up.{}.blocks.{}.transformer."),
    ]


OTHERS = {
    "SD3Transformer2DModel": "Stable Diffusion 3, a transformer",
    "FluxTransformer2DModel": "FLUX, a transformer",
    "StableCascadeUNet": "Stable Cascade",
    "UNet2DModel": "diffusion on pixels: `pixel-diffusion`",
    "UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "UNetMotionModel": "AnimateDiff",
    "Kandinsky3UNet": "Kandinsky 3",
    "ControlNetModel": "a ControlNet",
}
SUPPORTED: dict[str, tuple[Any, ...]] = {  # values with which a field changes nothing
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0, 0.0),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
READ = {
    *("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups"),
    *("down_block_types", "up_block_types", "transformer_layers_per_block", "attention_head_dim"),
    *("cross_attention_dim", "only_cross_attention", "use_linear_projection", "num_class_embeds"),
    *("projection_class_embeddings_input_dim", "addition_time_embed_dim"),
    "resnet_time_scale_shift",
}
CONDITIONING: dict[str, Literal["add", "scale_shift"]] = {
    "default": "add", "scale_shift": "scale_shift"
}  # fmt: skip
IGNORED = {"sample_size", "upcast_attention", "addition_embed_type_num_heads"}
"""The training resolution, an option for float16 attention that our kernels do not need, and a
parameter of an unsupported embedding.
"""


def from_diffusers(config: Mapping[str, Any]) -> LatentUNetConfig:
    """Parse a diffusers `config.json`; missing fields have diffusers' defaults.

    `attention_head_dim` is the number of heads, not their width: an error that the published files
    keep (huggingface/diffusers#2011).

    Raises:
        ValueError: the network is of another kind, which is named, or a field is not supported.
    """
    kind = config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        what = f" ({OTHERS[kind]})" if kind in OTHERS else ""
        raise ValueError(f"{kind}{what} is not the U-Net of Stable Diffusion 1.x, 2.x or XL")
    check_fields(config, SUPPORTED, READ | IGNORED)
    for name in ("layers_per_block", "cross_attention_dim"):
        if isinstance(config.get(name), list | tuple):
            raise ValueError(f"{name} differs between levels, which is not supported")
    widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(widths)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    only = _per_level(config.get("only_cross_attention", False), levels)
    linear = config.get("use_linear_projection", False)
    added = config.get("projection_class_embeddings_input_dim") or 0
    time_shift = config.get("resnet_time_scale_shift", "default")
    if time_shift not in CONDITIONING:
        raise ValueError(
            f"resnet_time_scale_shift is {time_shift!r}; supported: default, scale_shift"
        )
    if bool(added) != (config.get("addition_embed_type") == "text_time"):
        raise ValueError("addition_embed_type and projection_class_embeddings_input_dim disagree")
    return LatentUNetConfig(
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        widths=widths,
        blocks=config.get("layers_per_block", 2),
        transformers=tuple(
            depth if reads else 0
            for depth, reads in zip(depths, _levels_with_attention(config, levels), strict=True)
        ),
        middle=depths[-1],
        heads=tuple(_per_level(config.get("attention_head_dim", 8), levels)),
        context=config.get("cross_attention_dim", 1280),
        only_context=tuple(level for level in range(levels) if only[level]),
        added=added,
        size_waves=config.get("addition_time_embed_dim") or 256,
        labels=config.get("num_class_embeds") or 0,
        groups=config.get("norm_num_groups", 32),
        conditioning=CONDITIONING[time_shift],
        projections="linear" if linear else "convolution",
    )


def to_diffusers(config: LatentUNetConfig) -> dict[str, Any]:
    """Write a diffusers `config.json`.

    Raises:
        ValueError: the middle does not have as many transformer blocks as the last level, which
            diffusers requires.
    """
    last = config.transformers[-1]
    if last not in (0, config.middle):
        raise ValueError(
            f"diffusers needs as many transformer blocks in the middle ({config.middle}) as in the "
            f"last level ({last})"
        )
    levels = range(len(config.widths))
    reads = ["CrossAttn" if depth else "" for depth in config.transformers]
    stored: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": list(config.heads),
        "block_out_channels": list(config.widths),
        "cross_attention_dim": config.context,
        "down_block_types": [f"{kind}DownBlock2D" for kind in reads],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.blocks,
        "norm_eps": 1e-5,
        "norm_num_groups": config.groups,
        "num_class_embeds": config.labels or None,
        "only_cross_attention": [level in config.only_context for level in levels],
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": {v: k for k, v in CONDITIONING.items()}[config.conditioning],
        "transformer_layers_per_block": [
            *(depth or 1 for depth in config.transformers[:-1]), config.middle
        ],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(reads)],
        "use_linear_projection": config.projections == "linear",
    }  # fmt: skip
    if config.added:
        stored["addition_embed_type"] = "text_time"
        stored["addition_time_embed_dim"] = config.size_waves
        stored["projection_class_embeddings_input_dim"] = config.added
    return stored


def _per_level(value: Any, levels: int) -> list[Any]:
    """One value per level, from a list or a single value."""
    if not isinstance(value, list | tuple):
        return [value] * levels
    if len(value) != levels or any(isinstance(one, list | tuple) for one in value):
        raise ValueError(f"expected one value for each of {levels} levels, not {value}")
    return list(value)


def _levels_with_attention(config: Mapping[str, Any], levels: int) -> list[bool]:
    """Which levels have cross attention; they must be the same on the way down and up."""
    default = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    down = list(config.get("down_block_types", default))
    up = list(config.get("up_block_types", [kind.replace("Down", "Up") for kind in down[::-1]]))
    for kind in (*down, *up):
        if kind.removeprefix("CrossAttn") not in ("DownBlock2D", "UpBlock2D"):
            raise ValueError(f"the block type {kind} is not supported")
    reads = [kind.startswith("CrossAttn") for kind in down]
    if len(down) != levels or reads[::-1] != [kind.startswith("CrossAttn") for kind in up]:
        raise ValueError(f"down_block_types {down} and up_block_types {up} do not match")
    return reads

"""Karlo, the published DALL-E 2: diffusers' names and configurations, and those of its own program.

Diffusers' folder has one network each for prior, decoder and both parts of the upsampler, and one
for the projections of the decoder. Karlo's own checkpoints have LDM's names, and attention stored
head by head.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from triptych.systems.clip.published import TRANSFORMERS
from triptych.systems.pixel_diffusion.published import DIFFUSERS
from triptych.systems.pixel_diffusion.unet import UNetConfig
from triptych.systems.stable_diffusion.published.unet import CONDITIONING, LDM_RESIDUAL, SUPPORTED
from triptych.systems.unclip.decoder import DecoderConfig
from triptych.systems.unclip.prior import BESIDE, PriorConfig
from triptych.systems.unclip.upsampler import UpsamplerConfig
from triptych.weights.diffusers_names import RESIDUAL, check_fields, layer
from triptych.weights.keymap import Rule, rename, split, under

Json = Mapping[str, Any]

HEAD = 64
"""Width of the attention heads in all of Karlo's networks."""

PRIOR = [
    *layer("time_embedding.linear_1", "time.up"),
    *layer("time_embedding.linear_2", "time.down"),
    *layer("proj_in", "image_proj"),
    *layer("embedding_proj", "text_proj"),
    *layer("encoder_hidden_states_proj", "state_proj"),
    rename("positional_embedding", "position", "one row"),
    rename("prd_embedding", "query", "one cell"),
    *under(
        [
            *layer("norm1", "attn_norm"),
            *(rule for x in "qkv" for rule in layer(f"attn1.to_{x}", f"attn.{x}_proj")),
            *layer("attn1.to_out.0", "attn.out_proj"),
            *layer("norm3", "mlp_norm"),
            *layer("ff.net.0.proj", "mlp.up"),
            *layer("ff.net.2", "mlp.down"),
        ],
        "transformer_blocks.{}.",
        "transformer.blocks.{}.",
    ),
    *layer("norm_out", "norm"),
    *layer("proj_to_clip_embeddings", "out"),
    rename("clip_mean", "mean", "one row"),
    rename("clip_std", "std", "one row"),
]
"""Diffusers' `PriorTransformer`."""

ATTENTION = [
    *layer("group_norm", "norm"),
    *(rule for x in "qkv" for rule in layer(f"to_{x}", f"attention.{x}_proj")),
    *(rule for x in "kv" for rule in layer(f"add_{x}_proj", f"attention.added_{x}_proj")),
    *layer("to_out.0", "attention.out_proj"),
]
RESAMPLING = [
    *under(RESIDUAL, "down_blocks.{}.downsamplers.0.", "down.{}.downsample."),
    *under(RESIDUAL, "up_blocks.{}.upsamplers.0.", "up.{}.upsample."),
]
UPSAMPLER = [*(rule for rule in DIFFUSERS if "samplers" not in rule.theirs), *RESAMPLING]
"""Diffusers' `UNet2DModel` of the upsampler."""
DECODER = [
    *(rule for rule in UPSAMPLER if ".attentions." not in rule.theirs),
    *under(ATTENTION, "down_blocks.{}.attentions.{}.", "down.{}.blocks.{}.attention."),
    *under(ATTENTION, "mid_block.attentions.{}.", "middle.{}.attention."),
    *under(ATTENTION, "up_blocks.{}.attentions.{}.", "up.{}.blocks.{}.attention."),
]
"""Diffusers' `UNet2DConditionModel` of the decoder."""

PROJECTIONS = [
    *layer("embedding_proj", "text_proj"),
    *layer("clip_image_embeddings_project_to_time_embeddings", "image_proj"),
    *layer("clip_extra_context_tokens_proj", "token_proj"),
    *layer("encoder_hidden_states_proj", "state_proj"),
    *layer("text_encoder_hidden_states_norm", "state_norm"),
    rename("learned_classifier_free_guidance_embeddings", "null_image"),
]
"""Diffusers' `UnCLIPTextProjModel`."""

VISION = [
    rule._replace(ours=tuple(name.removeprefix("image.") for name in rule.ours))
    for rule in TRANSFORMERS
    if rule.theirs.startswith("vis")
]
"""Transformers' `CLIPVisionModelWithProjection`."""

KARLO_PRIOR = under(
    [
        *layer("time_embed.0", "time.up"),
        *layer("time_embed.2", "time.down"),
        *layer("clip_img_proj", "image_proj"),
        *layer("text_emb_proj", "text_proj"),
        *layer("text_enc_proj", "state_proj"),
        rename("positional_embedding", "position", "one row"),
        rename("prd_emb", "query", "one cell"),
        *under(
            [
                *layer("ln_1", "attn_norm"),
                *(
                    split(
                        f"attn.c_qkv.{kind}", *(f"attn.{x}_proj.{kind}" for x in "qkv"), stride=HEAD
                    )
                    for kind in ("weight", "bias")
                ),
                *layer("attn.c_proj", "attn.out_proj"),
                *layer("ln_2", "mlp_norm"),
                *layer("mlp.c_fc", "mlp.up"),
                *layer("mlp.c_proj", "mlp.down"),
            ],
            "transformer.resblocks.{}.",
            "transformer.blocks.{}.",
        ),
        *layer("final_ln", "norm"),
        *layer("out_proj", "out"),
    ],
    "model.",
)
"""Karlo's prior; the statistics of embeddings are in a file of their own."""

KARLO_ATTENTION = [
    *layer("norm", "norm"),
    split("qkv.weight", *(f"attention.{x}_proj.weight" for x in "qkv"), form="1 wide", stride=HEAD),
    split("qkv.bias", *(f"attention.{x}_proj.bias" for x in "qkv"), stride=HEAD),
    split(
        "encoder_kv.weight",
        *(f"attention.added_{x}_proj.weight" for x in "kv"),
        form="1 wide",
        stride=HEAD,
    ),
    split("encoder_kv.bias", *(f"attention.added_{x}_proj.bias" for x in "kv"), stride=HEAD),
    *layer("proj_out", "attention.out_proj", "1 wide"),
]
KARLO_PROJECTIONS = [
    *layer("text_feat_proj", "text_proj"),
    *layer("clip_emb", "image_proj"),
    *layer("clip_tok_proj", "token_proj"),
    *layer("text_seq_proj.0", "state_proj"),
    *layer("text_seq_proj.1", "state_norm"),
    rename("cf_param", "null_image"),
]


def karlo_unet(config: UNetConfig) -> list[Rule]:
    """Karlo's names of a U-Net: LDM's, whose blocks are numbered across levels, with residual
    blocks that halve and double the side.
    """
    levels, count = len(config.widths), config.blocks + 1
    rules = [
        *layer("time_embed.0", "time.up"),
        *layer("time_embed.2", "time.down"),
        *layer("input_blocks.0.0", "conv_in"),
        *under(LDM_RESIDUAL, "middle_block.0.", "middle.0.residual."),
        *under(LDM_RESIDUAL, f"middle_block.{1 + config.middle_attention}.", "middle.1.residual."),
        *layer("out.0", "norm_out"),
        *layer("out.2", "conv_out"),
    ]
    if config.middle_attention:
        rules += under(KARLO_ATTENTION, "middle_block.1.", "middle.0.attention.")
    for number in range(1, levels * count):
        level, block = divmod(number - 1, count)
        ours = f"down.{level}.blocks.{block}."
        if block == config.blocks:
            rules += under(LDM_RESIDUAL, f"input_blocks.{number}.0.", f"down.{level}.downsample.")
            continue
        rules += under(LDM_RESIDUAL, f"input_blocks.{number}.0.", f"{ours}residual.")
        if level in config.attention:
            rules += under(KARLO_ATTENTION, f"input_blocks.{number}.1.", f"{ours}attention.")
    for number in range(levels * count):
        step, block = divmod(number, count)
        theirs, ours = f"output_blocks.{number}.", f"up.{step}.blocks.{block}."
        attends = levels - 1 - step in config.attention
        rules += under(LDM_RESIDUAL, f"{theirs}0.", f"{ours}residual.")
        if attends:
            rules += under(KARLO_ATTENTION, f"{theirs}1.", f"{ours}attention.")
        if block == config.blocks and step < levels - 1:
            rules += under(LDM_RESIDUAL, f"{theirs}{1 + attends}.", f"up.{step}.upsample.")
    return rules


def karlo_decoder(config: DecoderConfig) -> list[Rule]:
    """Karlo's decoder: the U-Net and its projections in one file."""
    return under([*KARLO_PROJECTIONS, *under(karlo_unet(config.unet), "", "unet.")], "model.")


def karlo_upsampler(config: UpsamplerConfig) -> list[Rule]:
    """Karlo's upsampler: the network of the first steps, and that of the last one."""
    inside = karlo_unet(config.unet)
    return [
        *under(inside, "model_first_steps.", "unet."),
        *under(inside, "model_last_step.", "last."),
    ]


UNUSED: dict[str, tuple[Any, ...]] = SUPPORTED | {
    "addition_embed_type": (None,),
    "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_time_scale_shift": ("scale_shift", "default"),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False, None),
    "use_linear_projection": (False,),
}
"""Values with which a field of a U-Net changes nothing, or that are read."""


def read_prior(config: Json, scheduler: Json) -> PriorConfig:
    """The `config.json` of diffusers' PriorTransformer and the scheduler's.

    Raises:
        ValueError: a field of one of them is not supported.
    """
    supported: dict[str, tuple[Any, ...]] = {
        "additional_embeddings": (BESIDE,),
        "dropout": (0, 0.0),
        "time_embed_act_fn": ("silu",),
        "norm_in_type": (None,),
        "embedding_proj_norm_type": (None,),
        "encoder_hid_proj_type": ("linear",),
        "added_emb_type": ("prd",),
        "time_embed_dim": (None,),
        "embedding_proj_dim": (None,),
        "clip_embed_dim": (None,),
    }
    read = ("num_attention_heads", "attention_head_dim", "num_layers")
    check_fields(config, supported, {*read, "embedding_dim", "num_embeddings"})
    bound = read_scheduler(scheduler, "fixed_small_log", "sample")
    heads, layers = config.get("num_attention_heads", 32), config.get("num_layers", 20)
    width, dim = heads * config.get("attention_head_dim", 64), config.get("embedding_dim", 768)
    return PriorConfig(
        dim,
        dim,
        config.get("num_embeddings", 77),
        width,
        layers,
        heads,
        4 * width,
        limit=bound,
    )


def read_scheduler(config: Json, variance: str, predicts: str) -> float:
    """The bound of x0 in the configuration of diffusers' UnCLIPScheduler; 0 for none.

    Raises:
        ValueError: it is another scheduler than that of Karlo's network.
    """
    supported = {
        "num_train_timesteps": (1000,),
        "beta_schedule": ("squaredcos_cap_v2",),
        "variance_type": (variance,),
        "prediction_type": (predicts,),
    }
    kind = config.get("_class_name", "UnCLIPScheduler")
    if kind != "UnCLIPScheduler":
        raise ValueError(f"the scheduler is {kind!r}; supported: UnCLIPScheduler")
    check_fields(config, supported, {"clip_sample", "clip_sample_range"}, "scheduler: ")
    defaults = {"variance_type": "fixed_small_log", "prediction_type": "epsilon"}
    for name, value in defaults.items():
        check_fields({name: config.get(name, value)}, supported, (), "scheduler: ")
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else 0.0


def read_decoder(config: Json, projections: Json, scheduler: Json) -> DecoderConfig:
    """Diffusers' UNet2DConditionModel of a decoder, UnCLIPTextProjModel, and their scheduler.

    Raises:
        ValueError: a field of one of them is not supported, or they do not fit together.
    """
    supported = {
        "class_embed_type": ("identity",),
        "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    }
    read = {"attention_head_dim", "cross_attention_dim"}
    levels = _read_levels(config, supported, read, "SimpleCrossAttn{}Block2D")
    names = ("clip_extra_context_tokens", "clip_embeddings_dim", "time_embed_dim")
    check_fields(projections, {}, {*names, "cross_attention_dim"}, "text_proj: ")
    if config.get("class_embed_type") != "identity":
        raise ValueError("class_embed_type must be 'identity', which adds the image embedding")
    context, channels = config.get("cross_attention_dim", 1280), config.get("in_channels", 4)
    time_width = 4 * levels["widths"][0]
    given = projections.get("cross_attention_dim"), projections.get("time_embed_dim")
    if given != (context, time_width):
        raise ValueError(f"text_proj writes widths {given}, the U-Net reads {context, time_width}")
    if config.get("out_channels", 4) != 2 * channels:
        raise ValueError("out_channels must be twice in_channels: noise and its variance")
    if read_scheduler(scheduler, "learned_range", "epsilon") != 1.0:
        raise ValueError("the decoder's scheduler must clip to 1, the range of pictures")
    dim = projections.get("clip_embeddings_dim", 768)
    return DecoderConfig(
        dim,
        dim,
        config.get("sample_size") or 64,
        channels,
        projections.get("clip_extra_context_tokens", 4),
        context,
        head_width=config.get("attention_head_dim", 8),
        time_width=time_width,
        **levels,
    )


def read_upsampler(first: Json, last: Json, scheduler: Json, small: int) -> UpsamplerConfig:
    """Diffusers' UNet2DModel of the first steps, that of the last, and their scheduler; `small` is
    the side of the pictures that they read.

    Raises:
        ValueError: a field of one of them is not supported, or the networks differ.
    """
    supported: dict[str, tuple[Any, ...]] = {
        "add_attention": (False,),
        "attn_norm_num_groups": (None,),
        "downsample_type": ("conv",),
        "mid_block_type": (None, "UNetMidBlock2D"),
        "num_train_timesteps": (None,),
        "upsample_type": ("conv",),
    }
    ignored = {"attention_head_dim"}
    levels = _read_levels(first, supported, ignored, "")
    if _read_levels(last, supported, ignored, "") != levels or _sides(first) != _sides(last):
        raise ValueError("the networks of the first steps and of the last one differ")
    size, read, written = _sides(first)
    if read != 2 * written or levels.pop("attention") or first.get("add_attention", True):
        raise ValueError(
            "the upsampler must read twice the channels that it writes, and have no attention"
        )
    if read_scheduler(scheduler, "fixed_small_log", "epsilon") != 1.0:
        raise ValueError("the upsampler's scheduler must clip to 1, the range of pictures")
    width = 4 * levels["widths"][0]
    return UpsamplerConfig(small, size, written, time_width=width, last=True, **levels)


def _sides(config: Json) -> tuple[int, int, int]:
    """Size of the pictures, channels of input and output."""
    return (
        config.get("sample_size") or 0,
        config.get("in_channels", 3),
        config.get("out_channels", 3),
    )


def _read_levels(
    config: Json, supported: Mapping[str, tuple[Any, ...]], read: Collection[str], attends: str
) -> dict[str, Any]:
    """Widths, blocks, levels with attention, groups and conditioning of a U-Net; `attends` is the
    name of the block types with attention.
    """
    shared = {"in_channels", "out_channels", "sample_size", "block_out_channels"}
    shared |= {"layers_per_block", "norm_num_groups", "down_block_types", "up_block_types"}
    check_fields(config, {**UNUSED, **supported}, shared | set(read))
    widths = tuple(config.get("block_out_channels", ()))
    kinds: dict[str, list[bool]] = {}
    for way in ("Down", "Up"):
        known = {f"Resnet{way}sampleBlock2D": False, attends.format(way): True}
        stored = config.get(f"{way.lower()}_block_types", ())
        if unknown := [kind for kind in stored if kind not in known]:
            raise ValueError(f"the block type {unknown[0]} is not supported")
        kinds[way] = [known[kind] for kind in stored]
    if kinds["Down"] != kinds["Up"][::-1] or len(kinds["Down"]) != len(widths):
        raise ValueError("down_block_types and up_block_types do not match")
    shift = config.get("resnet_time_scale_shift", "default")
    conditioning: Literal["add", "scale_shift"] = CONDITIONING[shift]
    return {
        "widths": widths,
        "blocks": config.get("layers_per_block", 2),
        "attention": tuple(level for level, there in enumerate(kinds["Down"]) if there),
        "groups": config.get("norm_num_groups", 32),
        "conditioning": conditioning,
    }

"""CLIP checkpoints: their names of tensors on the left, ours on the right.

OpenAI's archives and open_clip's folders share one table; open_clip puts the text tower under
`text.` where its configuration says `custom_text`. Transformers has its own.
"""

from triptych.weights.keymap import Rule, drop, rename, split, under


def rename_layer(theirs: str, ours: str) -> list[Rule]:
    """A layer's weight and bias."""
    return [rename(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


OPENAI_BLOCK = [
    *rename_layer("ln_1", "attn_norm"),
    split("attn.in_proj_weight", *(f"attn.{x}_proj.weight" for x in "qkv")),
    split("attn.in_proj_bias", *(f"attn.{x}_proj.bias" for x in "qkv")),
    *rename_layer("attn.out_proj", "attn.out_proj"),
    rename("ls_1.gamma", "attn_scale"),
    *rename_layer("ln_2", "mlp_norm"),
    *rename_layer("mlp.c_fc", "mlp.up"),
    *rename_layer("mlp.c_proj", "mlp.down"),
    rename("ls_2.gamma", "mlp_scale"),
]

OPENAI_TEXT = [
    rename("token_embedding.weight", "token.weight"),
    rename("positional_embedding", "position"),
    *under(OPENAI_BLOCK, "transformer.resblocks.{}.", "transformer.blocks.{}."),
    *rename_layer("ln_final", "post_norm"),
]

OPENAI_VIT = [
    rename("conv1.weight", "patch.weight"),
    rename("class_embedding", "class_token"),
    rename("positional_embedding", "position"),
    *rename_layer("ln_pre", "pre_norm"),
    *under(OPENAI_BLOCK, "transformer.resblocks.{}.", "transformer.blocks.{}."),
    *rename_layer("ln_post", "post_norm"),
    rename("proj", "projection.weight", "transposed"),
]


def batch_norm(theirs: str, ours: str) -> list[Rule]:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [rename(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in kinds]


BOTTLENECK = [
    *(rename(f"conv{i}.weight", f"conv{i}.weight") for i in (1, 2, 3)),
    *(rule for i in (1, 2, 3) for rule in batch_norm(f"bn{i}", f"norm{i}")),
    rename("downsample.0.weight", "shortcut.weight"),
    *batch_norm("downsample.1", "shortcut_norm"),
]

OPENAI_RESNET = [
    *(rename(f"conv{i}.weight", f"conv{i}.weight") for i in (1, 2, 3)),
    *(rule for i in (1, 2, 3) for rule in batch_norm(f"bn{i}", f"norm{i}")),
    *(
        rule
        for stage in range(4)
        for rule in under(BOTTLENECK, f"layer{stage + 1}.{{}}.", f"stages.{stage}.{{}}.")
    ),
    rename("attnpool.positional_embedding", "pool.position"),
    *(rule for x in "qkv" for rule in rename_layer(f"attnpool.{x}_proj", f"pool.attn.{x}_proj")),
    *rename_layer("attnpool.c_proj", "pool.attn.out_proj"),
]

OPENAI_EXTRAS = [
    rename("logit_scale", "logit_scale"),
    # entries that are not weights, and open_clip's masks
    drop("input_resolution"),
    drop("context_length"),
    drop("vocab_size"),
    drop("attn_mask"),
]


def openai_rules(resnet: bool, custom_text: bool = False) -> list[Rule]:
    """OpenAI's and open_clip's names."""
    image = OPENAI_RESNET if resnet else OPENAI_VIT
    text = [*OPENAI_TEXT, rename("text_projection", "projection.weight", "transposed")]
    return [
        *under(image, "visual.", "image."),
        *under(text, "text." if custom_text else "", "text."),
        *OPENAI_EXTRAS,
    ]


TRANSFORMERS_BLOCK = [
    *rename_layer("layer_norm1", "attn_norm"),
    *(rule for x in "qkv" for rule in rename_layer(f"self_attn.{x}_proj", f"attn.{x}_proj")),
    *rename_layer("self_attn.out_proj", "attn.out_proj"),
    *rename_layer("layer_norm2", "mlp_norm"),
    *rename_layer("mlp.fc1", "mlp.up"),
    *rename_layer("mlp.fc2", "mlp.down"),
]

TRANSFORMERS_TEXT = [
    rename("embeddings.token_embedding.weight", "token.weight"),
    rename("embeddings.position_embedding.weight", "position"),
    drop("embeddings.position_ids"),
    *under(TRANSFORMERS_BLOCK, "encoder.layers.{}.", "transformer.blocks.{}."),
    *rename_layer("final_layer_norm", "post_norm"),
]

TRANSFORMERS = [
    rename("vision_model.embeddings.class_embedding", "image.class_token"),
    rename("vision_model.embeddings.patch_embedding.weight", "image.patch.weight"),
    rename("vision_model.embeddings.position_embedding.weight", "image.position"),
    drop("vision_model.embeddings.position_ids"),
    *rename_layer("vision_model.pre_layrnorm", "image.pre_norm"),  # their spelling
    *under(TRANSFORMERS_BLOCK, "vision_model.encoder.layers.{}.", "image.transformer.blocks.{}."),
    *rename_layer("vision_model.post_layernorm", "image.post_norm"),
    rename("visual_projection.weight", "image.projection.weight"),
    *under(TRANSFORMERS_TEXT, "text_model.", "text."),
    rename("text_projection.weight", "text.projection.weight"),
    rename("logit_scale", "logit_scale"),
]

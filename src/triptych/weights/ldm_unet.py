"""The U-Net of a single file: the names of LDM and of Stability's own code.

Which U-Net a file holds, and where, `single_file.py` says.
"""

from triptych.models.latent_unet import LatentUNetConfig
from triptych.weights.keymap import Rule, rename, under
from triptych.weights.latent_unet import transformer
from triptych.weights.unet import layer

RESIDUAL = [
    *layer("in_layers.0", "norm1"),
    *layer("in_layers.2", "conv1"),
    *layer("emb_layers.1", "feature_proj"),
    *layer("out_layers.0", "norm2"),
    *layer("out_layers.3", "conv2"),
    *layer("skip_connection", "shortcut"),
]


def ldm_rules(config: LatentUNetConfig) -> list[Rule]:
    """The names under `model.diffusion_model.`, where all blocks of a way are counted through."""
    inside = transformer(config)
    rules = [
        *layer("time_embed.0", "time.up"),
        *layer("time_embed.2", "time.down"),
        *layer("label_emb.0.0", "added.up"),
        *layer("label_emb.0.2", "added.down"),
        rename("label_emb.weight", "label.weight"),
        *layer("input_blocks.0.0", "conv_in"),
        *under(RESIDUAL, "middle_block.0.", "middle.first."),
        *under(inside, "middle_block.1.", "middle.transformer."),
        *under(RESIDUAL, "middle_block.2.", "middle.second."),
        *layer("out.0", "norm_out"),
        *layer("out.2", "conv_out"),
    ]
    count = config.blocks + 1
    last = len(config.widths) - 1
    for level in range(last + 1):
        for block in range(config.blocks):
            theirs = f"input_blocks.{1 + level * count + block}"
            rules += under(RESIDUAL, f"{theirs}.0.", f"down.{level}.blocks.{block}.residual.")
            if config.transformers[level]:
                rules += under(inside, f"{theirs}.1.", f"down.{level}.blocks.{block}.transformer.")
        if level < last:
            theirs = f"input_blocks.{(level + 1) * count}.0.op"
            rules += layer(theirs, f"down.{level}.downsample.conv")
    for step, depth in enumerate(reversed(config.transformers)):
        for block in range(count):
            theirs = f"output_blocks.{step * count + block}"
            rules += under(RESIDUAL, f"{theirs}.0.", f"up.{step}.blocks.{block}.residual.")
            if depth:
                rules += under(inside, f"{theirs}.1.", f"up.{step}.blocks.{block}.transformer.")
        if step < last:
            theirs = f"output_blocks.{step * count + count - 1}.{2 if depth else 1}.conv"
            rules += layer(theirs, f"up.{step}.upsample.conv")
    return rules

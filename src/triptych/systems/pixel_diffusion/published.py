"""Diffusers' `UNet2DModel`: its names on the left, ours on the right."""

from triptych.weights.diffusers_names import RESIDUAL, layer
from triptych.weights.keymap import under

ATTENTION = [
    *layer("group_norm", "norm"),
    *layer("to_q", "attention.q_proj"),
    *layer("to_k", "attention.k_proj"),
    *layer("to_v", "attention.v_proj"),
    *layer("to_out.0", "attention.out_proj"),
]

DIFFUSERS = [
    *layer("time_embedding.linear_1", "time.up"),
    *layer("time_embedding.linear_2", "time.down"),
    *layer("conv_in", "conv_in"),
    *under(RESIDUAL, "down_blocks.{}.resnets.{}.", "down.{}.blocks.{}.residual."),
    *under(ATTENTION, "down_blocks.{}.attentions.{}.", "down.{}.blocks.{}.attention."),
    *layer("down_blocks.{}.downsamplers.0.conv", "down.{}.downsample.conv"),
    *under(RESIDUAL, "mid_block.resnets.{}.", "middle.{}.residual."),
    *under(ATTENTION, "mid_block.attentions.{}.", "middle.{}.attention."),
    *under(RESIDUAL, "up_blocks.{}.resnets.{}.", "up.{}.blocks.{}.residual."),
    *under(ATTENTION, "up_blocks.{}.attentions.{}.", "up.{}.blocks.{}.attention."),
    *layer("up_blocks.{}.upsamplers.0.conv", "up.{}.upsample.conv"),
    *layer("conv_norm_out", "norm_out"),
    *layer("conv_out", "conv_out"),
]

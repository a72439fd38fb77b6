"""Diffusers' `UNet2DModel`: its names on the left, ours on the right."""

from triptych.weights.diffusers_names import RESIDUAL, UNET, layer
from triptych.weights.keymap import under

ATTENTION = [
    *layer("group_norm", "norm"),
    *layer("to_q", "attention.q_proj"),
    *layer("to_k", "attention.k_proj"),
    *layer("to_v", "attention.v_proj"),
    *layer("to_out.0", "attention.out_proj"),
]

DIFFUSERS = [
    *UNET,
    *under(ATTENTION, "down_blocks.{}.attentions.{}.", "down.{}.blocks.{}.attention."),
    *under(RESIDUAL, "mid_block.resnets.{}.", "middle.{}.residual."),
    *under(ATTENTION, "mid_block.attentions.{}.", "middle.{}.attention."),
    *under(ATTENTION, "up_blocks.{}.attentions.{}.", "up.{}.blocks.{}.attention."),
]

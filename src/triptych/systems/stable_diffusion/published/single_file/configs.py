"""Configurations of the published models, for single files, which have none.

They are those of the published diffusers folders (`unet`, `vae` and `scheduler/*_config.json`), so
folders and single files share one parser. Those of text towers are in `text_encoder.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Family = Literal[
    "Stable Diffusion 1.x",
    "Stable Diffusion 2.x",
    "Stable Diffusion XL",
    "Stable Diffusion XL refiner",
]

DOWN, UP = "DownBlock2D", "UpBlock2D"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

SD_1: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
}
SD_2 = SD_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD_XL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "use_linear_projection": True,
}
SD_XL_REFINER = SD_XL | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": [UP, CROSS_UP, CROSS_UP, UP],
}

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAE_XL = VAE | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}

SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SCHEDULER_XL = SCHEDULER | {"_class_name": "EulerDiscreteScheduler"}

UNETS: dict[Family, dict[str, Any]] = {
    "Stable Diffusion 1.x": SD_1,
    "Stable Diffusion 2.x": SD_2,
    "Stable Diffusion XL": SD_XL,
    "Stable Diffusion XL refiner": SD_XL_REFINER,
}
AUTOENCODERS: dict[Family, dict[str, Any]] = {
    "Stable Diffusion 1.x": VAE,
    "Stable Diffusion 2.x": VAE,
    "Stable Diffusion XL": VAE_XL,
    "Stable Diffusion XL refiner": VAE_XL,
}
SCHEDULERS: dict[Family, dict[str, Any]] = {
    "Stable Diffusion 1.x": SCHEDULER,
    "Stable Diffusion 2.x": SCHEDULER,
    "Stable Diffusion XL": SCHEDULER_XL,
    "Stable Diffusion XL refiner": SCHEDULER_XL,
}


class Marks(NamedTuple):
    """Numbers that identify a published U-Net."""

    width: int
    context: int
    added: int


def marks(unet: Mapping[str, Any]) -> Marks:
    """The marks of a diffusers configuration of a U-Net."""
    return Marks(
        unet["block_out_channels"][0],
        unet["cross_attention_dim"],
        unet.get("projection_class_embeddings_input_dim") or 0,
    )

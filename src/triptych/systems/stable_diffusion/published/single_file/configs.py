"""Configurations of the published models, for single files, which have none.

They are what the published diffusers folders are read as; those of text towers are in
`text_encoder.py`.
"""

from dataclasses import replace
from typing import Literal

from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.model import (
    SamplingConfig,
    ScheduleConfig,
    StableDiffusionConfig,
)
from triptych.systems.stable_diffusion.unet import LatentUNetConfig

Family = Literal[
    "Stable Diffusion 1.x",
    "Stable Diffusion 2.x",
    "Stable Diffusion XL",
    "Stable Diffusion XL refiner",
]

UNETS: dict[Family, LatentUNetConfig] = {
    "Stable Diffusion 1.x": LatentUNetConfig(),
    "Stable Diffusion 2.x": LatentUNetConfig(
        heads=(5, 10, 20, 20), context=1024, projections="linear"
    ),
    "Stable Diffusion XL": LatentUNetConfig(
        widths=(320, 640, 1280),
        transformers=(0, 2, 10),
        middle=10,
        heads=(5, 10, 20),
        context=2048,
        added=2816,
        projections="linear",
    ),
    "Stable Diffusion XL refiner": LatentUNetConfig(
        widths=(384, 768, 1536, 1536),
        transformers=(0, 4, 4, 0),
        middle=4,
        heads=(6, 12, 24, 24),
        context=1280,
        added=2560,
        projections="linear",
    ),
}
AUTOENCODERS: dict[Family, AutoencoderConfig] = {
    "Stable Diffusion 1.x": AutoencoderConfig(),
    "Stable Diffusion 2.x": AutoencoderConfig(),
    "Stable Diffusion XL": AutoencoderConfig(scale=0.13025),
    "Stable Diffusion XL refiner": AutoencoderConfig(scale=0.13025),
}


def published_config(
    family: Family,
    schedule: ScheduleConfig,
    towers: tuple[TextEncoderConfig, ...],
    in_channels: int,
) -> StableDiffusionConfig:
    """The configuration of the published folder of a family; 9 `in_channels` are for inpainting."""
    large, inpaints = "XL" in family, in_channels == 9
    of_768_pixels = family == "Stable Diffusion 2.x" and schedule.predicts == "velocity"
    side = 1024 if large else 768 if of_768_pixels else 512
    sampling = SamplingConfig(
        "euler" if large else "plms",
        guidance=5.0 if large and not inpaints else 7.5,
        height=side,
        width=side,
        zeros_for_empty=family == "Stable Diffusion XL",
    )
    unet = replace(UNETS[family], in_channels=in_channels)
    return StableDiffusionConfig(unet, towers, schedule, sampling, AUTOENCODERS[family])

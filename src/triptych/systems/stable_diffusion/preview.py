"""Rough, fast pictures of latents, to watch while sampling.

Dimensions: B pictures, Z latent channels, h w latent sides, C channels.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.vision.images import to_pictures

SHADE = 0.8  # largest value of the plain colours, in [-1, 1]
SIDE = 4  # side of the plain pictures, in latent pixels


def preview_of(model: StableDiffusion) -> Callable[[Tensor], UInt8[np.ndarray, "B h w C"]]:
    """A function from latents (B, Z, h, w) to small pictures.

    A tiny autoencoder and patches decode fast. For a large autoencoder each latent pixel becomes
    one pixel by a linear map of its channels, fitted to this autoencoder's latents of plain
    colours, so no table per family of models is needed.
    """
    autoencoder = model.autoencoder
    if not isinstance(autoencoder, Autoencoder):
        return lambda latents: to_pictures(autoencoder.decode(latents.float()))
    with torch.inference_mode():
        weights = _fit_colours(autoencoder)

    def preview(latents: Float[Tensor, "B Z h w"]) -> UInt8[np.ndarray, "B h w C"]:
        with torch.inference_mode():
            colours = torch.einsum("bzhw,zc->bchw", latents.float(), weights[:-1])
            return to_pictures(colours + weights[-1, :, None, None])

    return preview


def _fit_colours(autoencoder: Autoencoder) -> Float[Tensor, "_ C"]:
    """Least squares from latents, with a bias, to plain colours."""
    device = next(autoencoder.parameters()).device
    shades = list(product((-SHADE, SHADE), repeat=autoencoder.config.channels))
    colours = torch.tensor(shades, device=device)  # (2^C, C)
    side = SIDE * autoencoder.config.factor
    images = colours[:, :, None, None].expand(-1, -1, side, side)
    latents = autoencoder.encode(images).float().mean((2, 3))  # (2^C, Z)
    inputs = torch.cat([latents, latents.new_ones(len(latents), 1)], dim=1)
    solution: Tensor = torch.linalg.lstsq(inputs.cpu(), colours.cpu()).solution
    return solution.to(device)

"""What latents look like, at once and roughly: a picture to watch while it is made.

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

SHADE = 0.8  # of the plain colours, in [-1, 1]
SIDE = 4  # latent pixels of a side of them


def preview_of(model: StableDiffusion) -> Callable[[Tensor], UInt8[np.ndarray, "B h w C"]]:
    """A function of latents (B, Z, h, w) to small pictures.

    A tiny autoencoder and pixels decode at once. Of a large one each place becomes one pixel by a
    linear map of its channels, fitted to the latents that this very autoencoder has of plain
    colours: no table of numbers for every family of models.
    """
    coder = model.autoencoder
    if not isinstance(coder, Autoencoder):
        return lambda latents: to_pictures(coder.decode(latents.float()))
    with torch.inference_mode():
        map_ = _fitted(coder)

    def shown(latents: Float[Tensor, "B Z h w"]) -> UInt8[np.ndarray, "B h w C"]:
        with torch.inference_mode():
            colours = torch.einsum("bzhw,zc->bchw", latents.float(), map_[:-1])
            return to_pictures(colours + map_[-1, :, None, None])

    return shown


def _fitted(coder: Autoencoder) -> Float[Tensor, "_ C"]:
    """Least squares from latents, and a 1 behind them, to the colours that have them."""
    device = next(coder.parameters()).device
    shades = list(product((-SHADE, SHADE), repeat=coder.config.channels))
    colours = torch.tensor(shades, device=device)  # (2^C, C)
    side = SIDE * coder.config.factor
    images = colours[:, :, None, None].expand(-1, -1, side, side)
    latents = coder.encode(images).float().mean((2, 3))  # (2^C, Z)
    known = torch.cat([latents, latents.new_ones(len(latents), 1)], dim=1)
    solution: Tensor = torch.linalg.lstsq(known.cpu(), colours.cpu()).solution
    return solution.to(device)

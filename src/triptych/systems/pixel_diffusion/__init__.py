"""Class-conditional diffusion on pixels (Ho 2020; classifier-free guidance: Ho and Salimans 2022).

In reading order: `request.py` (settings, presets), `unet.py` (the network), `model.py` (network,
schedule and condition as one model), `recipe.py` (how it is trained), `published.py` (the names of
diffusers' U-Net). The theory is in `triptych.diffusion`.
"""

from triptych.system import System
from triptych.systems.pixel_diffusion.request import PRESETS

SYSTEM = System(
    "class-conditional diffusion on pixels",
    kinds=("pixel-diffusion",),
    recipes={"pixel-diffusion": PRESETS},
    model="triptych.systems.pixel_diffusion.model",
    recipe="triptych.systems.pixel_diffusion.recipe",
)

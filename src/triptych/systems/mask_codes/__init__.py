"""Mask codes: the small autoencoder that turns a mask into 16 words of PaliGemma, and back (Ning
2023).

In reading order: `request.py` (settings, presets), `model.py` (the autoencoder and its objective),
`crops.py` (masks of objects in and out of pictures), `published.py` and `load_published.py` (the
published file), `recipe.py`.
"""

from triptych.system import System
from triptych.systems.mask_codes.request import PRESETS

SYSTEM = System(
    "the mask codes",
    kinds=("mask-codes",),
    recipes={"mask-codes": PRESETS},
    model="triptych.systems.mask_codes.model",
    load="triptych.systems.mask_codes.load_published",
    auto_dtype="float32",
    recipe="triptych.systems.mask_codes.recipe",
)

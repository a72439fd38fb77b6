"""Autoencoders of latent diffusion: the KL autoencoder (Rombach 2022) and the tiny TAESD family.

In reading order: `request.py` (settings, presets), `model.py` (the KL autoencoder), `objective.py`
and `perceptual.py` (reconstruction, perceptual and adversarial losses), `tiny_model.py`,
`recipe.py` (how it is trained), `published.py`, `tiny_published.py` and `load_published.py`
(checkpoints of other libraries).
"""

from triptych.system import System
from triptych.systems.autoencoder.request import PRESETS

SYSTEM = System(
    "the autoencoder",
    kinds=("autoencoder", "tiny-autoencoder"),
    recipes={"autoencoder": PRESETS},
    model="triptych.systems.autoencoder.tiny_model",
    load="triptych.systems.autoencoder.load_published",
    auto_dtype="float32",
    recipe="triptych.systems.autoencoder.recipe",
)

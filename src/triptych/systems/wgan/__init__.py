"""Conditional WGAN-GP: a generator against a critic with a gradient penalty (Gulrajani 2017).

In reading order: `request.py` (settings, presets), `model.py` (generator, critic, objectives),
`recipe.py` (critic updates, then one generator update), `report.py` (figures).
"""

from triptych.system import System
from triptych.systems.wgan.request import PRESETS

SYSTEM = System(
    "the conditional WGAN-GP",
    kinds=("wgan",),
    recipes={"wgan": PRESETS},
    model="triptych.systems.wgan.model",
    report="triptych.systems.wgan.report",
    recipe="triptych.systems.wgan.recipe",
)

"""A small ResNet: the judge of class-conditional pictures, and the supervised baseline.

In reading order: `request.py` (settings, presets), `model.py`, `recipe.py`.
"""

from triptych.system import System
from triptych.systems.classifier.request import PRESETS

SYSTEM = System(
    "the classifier",
    kinds=("classifier",),
    recipes={"classifier": PRESETS},
    model="triptych.systems.classifier.model",
    recipe="triptych.systems.classifier.recipe",
)

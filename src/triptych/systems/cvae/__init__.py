"""Conditional VAE: pictures of a class, with attributes, or completed from a part (Sohn 2015).

In reading order: `request.py` (settings, presets), `model.py` (the model, its objective, how it
samples), `recipe.py` (how it is trained), `report.py` (the evaluation of a run), `likelihood.py`
(its nats), `leak.py` (does the latent code reveal the class?), `figures.py`.
"""

from triptych.system import System
from triptych.systems.cvae.request import PRESETS, EvaluateVae

SYSTEM = System(
    "the conditional VAE",
    kinds=("cvae",),
    recipes={"cvae": PRESETS},
    evaluation=EvaluateVae,
    model="triptych.systems.cvae.model",
    report="triptych.systems.cvae.report",
    recipe="triptych.systems.cvae.recipe",
)

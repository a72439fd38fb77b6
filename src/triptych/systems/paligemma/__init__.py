"""PaliGemma: SigLIP and Gemma together answer questions about pictures (Beyer 2024, Steiner 2024).

In reading order: `request.py` (a question, and the settings of training), `model.py` (the model and
its loss), `published.py` (names and configurations of transformers), `load_published.py`,
`pipeline.py` (the answer), `answer.py`, `examples.py` (what is asked in training), `held_out.py`
(how well it answers meanwhile), `recipe.py`.
"""

from triptych.system import System
from triptych.systems.paligemma.request import VLM_PRESETS, Ask

SYSTEM = System(
    "PaliGemma",
    kinds=("paligemma",),
    recipes={"vlm": VLM_PRESETS},
    requests={"ask": Ask},
    serves=("paligemma",),
    model="triptych.systems.paligemma.model",
    load="triptych.systems.paligemma.load_published",
    pipeline="triptych.systems.paligemma.pipeline",
    answer="triptych.systems.paligemma.answer",
    recipe="triptych.systems.paligemma.recipe",
)

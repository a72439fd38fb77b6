"""PaLI-3: SigLIP's tokens before the text of an encoder, answers from its decoder (Chen 2023).

In reading order: `request.py` (settings, presets), `t5.py` (encoder and decoder), `model.py`,
`published.py` (T5 of transformers), `load_published.py`, `export.py`, `recipe.py`. It is asked and
evaluated as PaliGemma is.
"""

from triptych.system import System
from triptych.systems.pali.request import PALI_PRESETS
from triptych.systems.paligemma.request import EvaluateVlm

SYSTEM = System(
    "PaLI-3",
    kinds=("pali",),
    recipes={"pali": PALI_PRESETS},
    evaluation=EvaluateVlm,
    model="triptych.systems.pali.model",
    load="triptych.systems.pali.load_published",
    export="triptych.systems.pali.export",
    report="triptych.systems.paligemma.report",
    recipe="triptych.systems.pali.recipe",
)

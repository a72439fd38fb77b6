"""PaliGemma: SigLIP and Gemma together answer questions about pictures (Beyer 2024, Steiner 2024).

In reading order: `request.py` (a question), `model.py` (the model and its loss), `published.py`
(names and configurations of transformers), `load_published.py`, `pipeline.py` (the answer),
`answer.py`.
"""

from triptych.system import System
from triptych.systems.paligemma.request import Ask

SYSTEM = System(
    "PaliGemma",
    kinds=("paligemma",),
    requests={"ask": Ask},
    serves=("paligemma",),
    model="triptych.systems.paligemma.model",
    load="triptych.systems.paligemma.load_published",
    pipeline="triptych.systems.paligemma.pipeline",
    answer="triptych.systems.paligemma.answer",
)

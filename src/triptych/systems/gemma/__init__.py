"""Gemma: a small language model, the words of PaliGemma (Gemma Team 2024, 2025).

In reading order: `request.py` (a chat), `model.py` (all three generations and the objective),
`published.py` (names and configurations of transformers), `gguf.py` (the same of llama.cpp),
`load_published.py`, `export.py`, `pipeline.py` (the answer of a chat), `answer.py`, `texts.py` and
`recipe.py` (learning from text files).
"""

from triptych.system import System
from triptych.systems.gemma.request import LANGUAGE_PRESETS, Chat

SYSTEM = System(
    "Gemma",
    kinds=("gemma",),
    recipes={"language": LANGUAGE_PRESETS},
    requests={"chat": Chat},
    serves=("gemma",),
    model="triptych.systems.gemma.model",
    load="triptych.systems.gemma.load_published",
    packs=True,
    pipeline="triptych.systems.gemma.pipeline",
    answer="triptych.systems.gemma.answer",
    recipe="triptych.systems.gemma.recipe",
    export="triptych.systems.gemma.export",
)

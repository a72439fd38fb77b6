"""Gemma: a small language model, the words of PaliGemma (Gemma Team 2024, 2025).

In reading order: `request.py` (a chat), `model.py` (all three generations and the objective),
`published.py` (names and configurations of transformers), `gguf.py` (the same of llama.cpp),
`load_published.py`, `export.py`, `pipeline.py` (the answer of a chat), `answer.py`.
"""

from triptych.system import System
from triptych.systems.gemma.request import Chat

SYSTEM = System(
    "Gemma",
    kinds=("gemma",),
    requests={"chat": Chat},
    serves=("gemma",),
    model="triptych.systems.gemma.model",
    load="triptych.systems.gemma.load_published",
    pipeline="triptych.systems.gemma.pipeline",
    answer="triptych.systems.gemma.answer",
    export="triptych.systems.gemma.export",
)

"""Gemma: a small language model, the words of PaliGemma (Gemma Team 2024, 2025).

In reading order: `model.py` (all three generations and the objective), `published.py` (names and
configurations of transformers), `load_published.py`.
"""

from triptych.system import System

SYSTEM = System(
    "Gemma",
    kinds=("gemma",),
    model="triptych.systems.gemma.model",
    load="triptych.systems.gemma.load_published",
)

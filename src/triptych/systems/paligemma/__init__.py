"""PaliGemma: SigLIP and Gemma together answer questions about pictures (Beyer 2024, Steiner 2024).

In reading order: `model.py` (the model and its loss), `published.py` (names and configurations of
transformers).
"""

from triptych.system import System

SYSTEM = System("PaliGemma", kinds=("paligemma",), model="triptych.systems.paligemma.model")

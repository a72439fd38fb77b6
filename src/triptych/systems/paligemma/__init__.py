"""PaliGemma: SigLIP and Gemma together answer questions about pictures (Beyer 2024, Steiner 2024).

In reading order: `request.py` (a question, and the settings of training), `model.py` (the model and
its loss), `published.py` (names and configurations of transformers), `big_vision.py` (the same of
big_vision), `load_published.py`, `export.py`,
`ask_all.py` (answers to many questions at once), `pipeline.py` (the answer), `answer.py`,
`examples.py` (what is asked in training), `held_out.py` (how well it answers meanwhile),
`scene_report.py` and `report.py` (how well it answers), `learning.py` (what its training shares
with PaLI-3's), `recipe.py`.
"""

from triptych.system import System
from triptych.systems.paligemma.request import VLM_PRESETS, Ask, EvaluateVlm

SYSTEM = System(
    "PaliGemma",
    kinds=("paligemma",),
    recipes={"vlm": VLM_PRESETS},
    requests={"ask": Ask},
    serves=("paligemma", "pali"),
    evaluation=EvaluateVlm,
    model="triptych.systems.paligemma.model",
    load="triptych.systems.paligemma.load_published",
    packs=True,
    pipeline="triptych.systems.paligemma.pipeline",
    answer="triptych.systems.paligemma.answer",
    export="triptych.systems.paligemma.export",
    report="triptych.systems.paligemma.report",
    recipe="triptych.systems.paligemma.recipe",
)

"""What CLIP and SigLIP share: training, published checkpoints, embeddings, and how good they are.

In reading order: `request.py` (settings, presets, the request for embeddings), `labels.py` (labels
as embeddings), `load_published.py` (checkpoints of other libraries), `export.py` (and back),
`pipeline.py` (texts and pictures as vectors), `recipe.py` (how they are trained), `matching.py`,
`retrieval.py`, `clip_score.py` (scores), `report.py` (a run judged).
"""

from triptych.system import System
from triptych.systems.two_towers.request import CLIP_PRESETS, SIGLIP_PRESETS, Embed

SYSTEM = System(
    "CLIP and SigLIP",
    recipes={"clip": CLIP_PRESETS, "siglip": SIGLIP_PRESETS},
    requests={"embed": Embed},
    serves=("clip", "siglip"),
    load="triptych.systems.two_towers.load_published",
    pipeline="triptych.systems.two_towers.pipeline",
    answer="triptych.systems.two_towers.answer",
    report="triptych.systems.two_towers.report",
    recipe="triptych.systems.two_towers.recipe",
    export="triptych.systems.two_towers.export",
)

"""Zero-shot classification with any CLIP or SigLIP: labels that no training named.

In reading order: `request.py` (what can be asked), `pipeline.py` (a request carried out),
`report.py` (accuracy, confusion, calibration), `calibration.py`, `frozen.py` and `probe.py` (a
linear classifier on frozen features), `plots.py`, `similarity.py` (from cosine to probability as
one picture).
"""

from triptych.system import System
from triptych.systems.classification.request import Classify

SYSTEM = System(
    "zero-shot classification",
    requests={"classify": Classify},
    serves=("clip", "siglip"),
    pipeline="triptych.systems.classification.pipeline",
    answer="triptych.systems.classification.answer",
)

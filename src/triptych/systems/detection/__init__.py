"""Zero-shot detection with any CLIP or SigLIP: boxes around what labels name.

In reading order: `request.py` (what can be asked), `windows.py` and `dense.py` (scores of patches,
by sliding windows or by one pass of the whole picture), `heatmaps.py` (from scores to boxes),
`pipeline.py` (a request carried out), `annotations.py` (boxes in COCO's, VOC's and YOLO's form),
`report.py` (average precision).
"""

from triptych.system import System
from triptych.systems.detection.request import Detect

SYSTEM = System(
    "zero-shot detection",
    requests={"detect": Detect},
    serves=("clip", "siglip"),
    pipeline="triptych.systems.detection.pipeline",
)

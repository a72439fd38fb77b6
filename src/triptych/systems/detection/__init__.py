"""Zero-shot detection with any CLIP or SigLIP: boxes around what labels name.

In reading order: `request.py` (the request), `windows.py` and `dense.py` (scores of patches, by
sliding windows or by one pass of the complete picture), `heatmaps.py` (from scores to boxes),
`pipeline.py` (runs a request), `annotations.py` (boxes as COCO, VOC and YOLO files),
`report.py` (average precision).
"""

from triptych.system import System
from triptych.systems.detection.request import Detect

SYSTEM = System(
    "zero-shot detection",
    requests={"detect": Detect},
    serves=("clip", "siglip"),
    pipeline="triptych.systems.detection.pipeline",
    answer="triptych.systems.detection.answer",
)

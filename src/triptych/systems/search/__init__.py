"""Search with any CLIP or SigLIP: pictures of a folder by texts, pictures, and sums of both.

In reading order: `request.py` (the request), `index.py` (the vectors of a folder of pictures on
disk), `nearest.py` (nearest vectors, near duplicates), `pipeline.py` (runs a request).
"""

from triptych.system import System
from triptych.systems.search.request import Search

SYSTEM = System(
    "search",
    requests={"search": Search},
    serves=("clip", "siglip"),
    pipeline="triptych.systems.search.pipeline",
    answer="triptych.systems.search.answer",
)

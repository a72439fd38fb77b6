"""Search with any CLIP or SigLIP: pictures of a folder by texts, pictures, and sums of both.

In reading order: `request.py` (what can be asked), `index.py` (a folder of pictures as vectors on
disk), `nearest.py` (nearest vectors, near duplicates), `pipeline.py` (a request carried out).
"""

from triptych.system import System
from triptych.systems.search.request import Search

SYSTEM = System(
    "search",
    requests={"search": Search},
    serves=("clip", "siglip"),
    pipeline="triptych.systems.search.pipeline",
)

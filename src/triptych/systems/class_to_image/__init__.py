"""Pictures of a class, by a conditional VAE, WGAN-GP or diffusion model, and how good they are.

In reading order: `request.py` (the settings), `pipeline.py` (draws the pictures),
`clip_guidance.py` (a CLIP that guides a diffusion model), `report.py` (a run judged), `judge.py`
(every number of that report), `diffusion_curves.py` (quality against guidance and network calls),
`report_files.py` and `plots.py` (how they are written down).
"""

from triptych.system import System
from triptych.systems.class_to_image.request import ClassToImage, EvaluateClasses

SYSTEM = System(
    "pictures of a class",
    requests={"generate": ClassToImage},
    serves=("cvae", "wgan", "pixel-diffusion"),
    evaluation=EvaluateClasses,
    pipeline="triptych.systems.class_to_image.pipeline",
    answer="triptych.systems.class_to_image.answer",
    report="triptych.systems.class_to_image.report",
)

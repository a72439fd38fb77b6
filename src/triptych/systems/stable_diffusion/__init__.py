"""Text to image by latent diffusion: Stable Diffusion 1.x, 2.x and XL, and models trained here
(Rombach 2022).

In reading order: `request.py` (requests, settings, presets), `unet.py`, `model.py` (text towers,
U-Net, autoencoder and schedule as one model), `inputs/` (prompts, starting pictures,
AUTOMATIC1111's texts), `pipeline.py` (sampling), `adapters/` (LoRA, learned words), `published/`
(diffusers folders and single files, read and written), `recipe.py` and `training/`, `report.py`
(evaluation), `preview.py`, `openvino.py`.
"""

from triptych.system import System
from triptych.systems.stable_diffusion.request import (
    PRESETS,
    EvaluateTextToImage,
    TextToImage,
)

SYSTEM = System(
    "text to image",
    kinds=("stable-diffusion",),
    recipes={"text-to-image": PRESETS},
    requests={"generate": TextToImage},
    serves=("stable-diffusion",),
    evaluation=EvaluateTextToImage,
    model="triptych.systems.stable_diffusion.model",
    load="triptych.systems.stable_diffusion.published.load",
    summary="triptych.systems.stable_diffusion.published.inspect_checkpoint",
    pipeline="triptych.systems.stable_diffusion.pipeline",
    answer="triptych.systems.stable_diffusion.answer",
    report="triptych.systems.stable_diffusion.report",
    recipe="triptych.systems.stable_diffusion.recipe",
    export="triptych.systems.stable_diffusion.export",
)

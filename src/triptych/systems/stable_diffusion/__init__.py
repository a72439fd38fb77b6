"""Text to image by latent diffusion: Stable Diffusion 1.x, 2.x and XL, or one's own (Rombach 2022).

In reading order: `request.py` (what can be asked, settings, presets), `unet.py` (the network),
`model.py` (text towers, network, autoencoder and schedule as one model), `encode_prompts.py`,
`starting_picture.py`, `pipeline.py` (a request carried out), `adapters/` (LoRA, learned words),
`published/` (folders of diffusers and single files, both ways), `recipe.py` and `training/` (how it
is trained), `report.py` (a run judged), `parameters_text.py` (AUTOMATIC1111's record of a picture),
`preview.py`, `openvino.py`.
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
    report="triptych.systems.stable_diffusion.report",
    recipe="triptych.systems.stable_diffusion.recipe",
    export="triptych.systems.stable_diffusion.export",
)

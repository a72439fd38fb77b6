"""DALL-E 2 (unCLIP): a prior from text to a CLIP embedding of a picture, and a decoder from there
(Ramesh 2022).

In reading order: `request.py` and `presets.py` (the request, settings), `prior.py` and
`autoregressive.py` (from text to embedding), `decoder.py` (from embedding to picture),
`upsampler.py` (to larger pictures), `model.py` (all of them and the towers of CLIP as one model),
`draw.py` (one after the other), `published.py` and `load_published.py` (Karlo), `embeddings.py`
(interpolation, differences, components), `inputs.py` and `pipeline.py` (what a request draws),
`answer.py`, `report.py` and `evaluation/` (the priors compared), `recipe.py` and `training/` (each
part), `degradation.py`, `chain.py` (all parts).
"""

from triptych.system import System
from triptych.systems.unclip.presets import PRESETS
from triptych.systems.unclip.request import EvaluateUnclip, UnclipPictures

SYSTEM = System(
    "pictures through CLIP embeddings (DALL-E 2)",
    kinds=(
        "unclip",
        "unclip-prior",
        "unclip-autoregressive",
        "unclip-decoder",
        "unclip-upsampler",
    ),
    recipes=PRESETS,
    requests={"generate": UnclipPictures},
    serves=("unclip",),
    evaluation=EvaluateUnclip,
    model="triptych.systems.unclip.model",
    load="triptych.systems.unclip.load_published",
    auto_dtype="float32",
    pipeline="triptych.systems.unclip.pipeline",
    answer="triptych.systems.unclip.answer",
    report="triptych.systems.unclip.report",
    recipe="triptych.systems.unclip.recipe",
    chain="triptych.systems.unclip.chain",
)

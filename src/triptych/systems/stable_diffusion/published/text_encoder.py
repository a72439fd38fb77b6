"""Text towers of Stable Diffusion: configurations and key maps.

Folders have transformers' CLIPTextModel (1.x: CLIP L; 2.x: OpenCLIP H without its last block) or
CLIPTextModelWithProjection (XL: OpenCLIP bigG). Single files use the names of transformers or of
OpenCLIP under a prefix, and have OpenCLIP's towers with all blocks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from triptych.systems.clip.configs import read_text, write_text
from triptych.systems.clip.model import TextConfig, TextEncoderConfig
from triptych.systems.clip.published import OPENAI_TEXT, TRANSFORMERS_TEXT
from triptych.weights.keymap import Rule, drop, rename, under

PREFIX = "text_model."

OPENCLIP_H = TextEncoderConfig(
    TextConfig(width=1024, layers=24, heads=16, hidden=4096), dim=1024, skip=1
)
"""LAION's ViT-H/14 with all blocks, as in single files of 2.x; read before its last block."""

OPENCLIP_BIGG = TextEncoderConfig(
    TextConfig(width=1280, layers=32, heads=20, hidden=5120), dim=1280, skip=1, norm=False
)
"""LAION's ViT-bigG/14: the second tower of XL and the only one of its refiner."""


def from_transformers(
    stored: Mapping[str, Any], *, skip: int = 0, norm: bool = True
) -> TextEncoderConfig:
    """Parse a `text_encoder/config.json` of a diffusers folder.

    Which layer is read depends on the pipeline: for XL pass `skip=1, norm=False`.

    Raises:
        ValueError: the text model is not CLIP's.
    """
    kind = stored.get("model_type")
    if kind != "clip_text_model":
        raise ValueError(
            f"the text encoder has model_type {kind!r}; supported: clip_text_model, as in Stable "
            "Diffusion 1.x, 2.x and XL"
        )
    projected = _projected(stored.get("architectures"))
    dim = stored.get("projection_dim", 512) if projected else None
    return TextEncoderConfig(read_text(stored), dim, skip, norm)


def _projected(architectures: Any) -> bool:
    projected = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name not in projected:
        raise ValueError(f"the architecture is {name!r}; supported: {', '.join(projected)}")
    return projected[name]


def to_transformers(config: TextEncoderConfig) -> dict[str, Any]:
    """Write a `text_encoder/config.json`, which does not include which layer is read.

    Raises:
        ValueError: transformers' CLIP has no such tower.
    """
    text = config.text
    if not text.causal or text.pool != "end":
        raise ValueError("transformers' CLIP text tower must be causal and pooled at its end token")
    kind = "CLIPTextModel" if config.dim is None else "CLIPTextModelWithProjection"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        **write_text(text, text.width if config.dim is None else config.dim),
    }


def transformers_rules(config: TextEncoderConfig, names: Iterable[str] = (PREFIX,)) -> list[Rule]:
    """The names in a folder, and under `cond_stage_model.transformer.` in single files.

    Published files have the prefix `text_model.`; transformers 5 leaves it out for a tower without
    projection. `names` are the tensors of the file to read; the default is the published form.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    projection = [rename("text_projection.weight", "projection.weight")]
    return [*under(TRANSFORMERS_TEXT, prefix), *(projection if config.dim is not None else ())]


OPENCLIP_RULES = [
    *OPENAI_TEXT,
    rename("text_projection", "projection.weight", "transposed"),
    drop("logit_scale"),
    drop("attn_mask"),
]
"""OpenCLIP's names, in single files under `cond_stage_model.model.`,
`conditioner.embedders.1.model.` (XL) and `conditioner.embedders.0.model.` (the refiner).
"""

"""Which family of models a set of tensors belongs to, by the names that only it has."""

import re
from collections.abc import Mapping

from torch import Tensor

FAMILIES: dict[str, tuple[str, ...]] = {  # all of these names; the first family that has them
    "CLIP (OpenAI's names, ViT)": ("visual.class_embedding", "(text.)?token_embedding.weight"),
    "CLIP (OpenAI's names, ResNet)": (
        "visual.attnpool.positional_embedding",
        "(text.)?token_embedding.weight",
    ),
    "SigLIP (open_clip)": ("visual.trunk.attn_pool.latent", "text.token_embedding.weight"),
    "PaliGemma (Transformers)": (
        "(model.)?multi_modal_projector.linear.weight",
        "(model.)?(language_model|model).*",
    ),
    "SigLIP (Transformers)": ("vision_model.head.probe", "text_model.embeddings.*"),
    "CLIP (Transformers)": ("vision_model.embeddings.class_embedding", "text_model.embeddings.*"),
    "CLIP text tower (Transformers)": ("text_model.embeddings.token_embedding.weight",),
    "OWL-ViT": ("owlv(it|2).*", "class_head.*"),
    "PaliGemma (big_vision)": ("params/llm/.*", "params/img/.*"),
    "SigLIP (big_vision)": ("(params/)?img/.*", "(params/)?txt/.*"),
    "Stable Diffusion XL, single file": ("conditioner.embedders.1.*", "model.diffusion_model.*"),
    "Stable Diffusion, single file": ("model.diffusion_model.*", "cond_stage_model.*"),
    "U-Net (Diffusers)": ("down_blocks.0.resnets.0.conv1.weight", "time_embedding.*"),
    "autoencoder (Diffusers)": ("encoder.down_blocks.0.resnets.*", "decoder.mid_block.*"),
    "autoencoder (CompVis)": ("(first_stage_model.)?encoder.down.0.*", ".*decoder.mid.*"),
    "Gemma (Transformers)": ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.*"),
    "LoRA": (r".*(lora_(A|B|up|down)\b).*",),
}


def family(tensors: Mapping[str, Tensor]) -> str:
    """What the names say, such as `CLIP (Transformers)`; empty where they say nothing."""
    names = [name.removeprefix("module.") for name in tensors]
    for known, patterns in FAMILIES.items():
        if all(any(re.fullmatch(p, name) for name in names) for p in patterns):
            return known
    return ""


def agrees(declared: str, found: str) -> bool:
    """Whether a configuration's `model_type` can stand beside tensors of a family.

    Only families that we can tell apart are judged; anything else is given the benefit of doubt.
    """
    kinds = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP", "paligemma": "PaliGemma"}
    kinds |= {"gemma": "Gemma", "gemma2": "Gemma", "gemma3_text": "Gemma"}
    return not found or declared not in kinds or found.startswith(kinds[declared])

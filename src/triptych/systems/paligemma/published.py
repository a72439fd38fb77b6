"""PaliGemma checkpoints of transformers: their names of tensors on the left, ours on the right;
their configurations.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from triptych.config import errors_in
from triptych.systems.clip.configs import read_number, read_tower
from triptych.systems.clip.published import TRANSFORMERS_BLOCK, rename_layer
from triptych.systems.gemma import published as gemma
from triptych.systems.paligemma.model import PaliGemmaConfig
from triptych.systems.siglip.model import SiglipImageConfig
from triptych.weights.keymap import Rule, drop, rename, under

TEXT = 257_152
"""Tokens of the vocabulary: 256,000 of Gemma, 1,024 locations, 128 mask codes. Tables of published
checkpoints have 64 more rows, of which only the mark of a picture is used, and not here.
"""
VISION = "model.vision_tower."
EYE = [
    *rename_layer("embeddings.patch_embedding", "image.patch"),
    rename("embeddings.position_embedding.weight", "image.position"),
    drop("embeddings.position_ids"),
    *under(TRANSFORMERS_BLOCK, "encoder.layers.{}.", "image.transformer.blocks.{}."),
    *rename_layer("post_layernorm", "image.post_norm"),
]
"""The names of transformers' SiglipVisionModel without its pooling."""


def rules(config: PaliGemmaConfig) -> list[Rule]:
    """The names of transformers 5; `rename_older` brings those of 4 to them."""
    words = [
        rule._replace(theirs=_nested(rule.theirs), ours=tuple(f"text.{name}" for name in rule.ours))
        for rule in gemma.rules(config.text)
    ]
    return [
        *under(EYE, VISION),
        *rename_layer("model.multi_modal_projector.linear", "projector"),
        *words,
    ]


def _nested(name: str) -> str:
    """The name of a language model's tensor inside a PaliGemma."""
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def rename_older(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers 4, which published folders have, as those of 5."""
    renamed = {}
    for name, tensor in state.items():
        new = name.replace("vision_tower.vision_model.", "vision_tower.")
        new = new.replace("language_model.model.", "language_model.")
        new = new.replace("language_model.lm_head.", "lm_head.")
        if not new.startswith(("model.", "lm_head.")):
            new = f"model.{new}"
        renamed[new] = tensor
    return renamed


def from_transformers(config: Mapping[str, Any]) -> PaliGemmaConfig:
    """A transformers `config.json` of `model_type` paligemma, with a text part of Gemma 1 or 2.

    Raises:
        ValueError: a model of another family, or parts that do not fit together.
    """
    if config.get("model_type") != "paligemma":
        raise ValueError(f"its model_type is {config.get('model_type')!r}, not 'paligemma'")
    vision, text = config.get("vision_config", {}), config.get("text_config", {})
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        raise ValueError("its vision_config or text_config is no object")
    with errors_in("vision_config"):
        image = read_eye(vision)
    with errors_in("text_config"):
        # set by transformers for the prefix, which is in both directions here, too
        kept = {k: v for k, v in text.items() if k != "use_bidirectional_attention"}
        defaults = DEFAULT_TEXT.get(f"{text.get('model_type')}", {})
        words = gemma.from_transformers({**defaults, **kept})
        if words.vocabulary == TEXT + 64:
            words = replace(words, vocabulary=TEXT)
    width = config.get("projection_dim", vision.get("projection_dim", words.width))
    if width != words.width:
        raise ValueError(f"pictures are projected to {width}, and words have {words.width}")
    return PaliGemmaConfig(image, words)


def read_eye(vision: Mapping[str, Any]) -> SiglipImageConfig:
    """transformers' settings of an eye without pooling."""
    return SiglipImageConfig(
        size=read_number(vision, "image_size", 224),
        patch=read_number(vision, "patch_size", 14),
        pooled=False,
        **read_tower({**DEFAULT_VISION, **vision}, "gelu_pytorch_tanh"),
    )


def write_eye(image: SiglipImageConfig) -> dict[str, Any]:
    """The same as a `config.json` of transformers' SiglipVisionModel.

    Raises:
        ValueError: transformers has no such eye.
    """
    if image.stem:
        raise ValueError(
            "transformers' eye has one patch filter, and this one a stem of convolutions: train "
            "with --preset plain"
        )
    return {
        "model_type": "siglip_vision_model",
        "image_size": image.size,
        "patch_size": image.patch,
        "hidden_size": image.width,
        "intermediate_size": image.hidden,
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.heads,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": image.eps,
        "vision_use_head": False,
    }


DEFAULT_VISION = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16,
}  # fmt: skip
DEFAULT_TEXT: dict[str, dict[str, int]] = {
    "gemma": {
        "hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16_384,
        "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": TEXT,
    }
}  # fmt: skip
"""What files of PaliGemma 1 leave out."""


def to_transformers(config: PaliGemmaConfig) -> dict[str, Any]:
    """Our configuration as a transformers `config.json`: one more token, the mark of a picture.

    Raises:
        ValueError: a language part that transformers has no model for.
    """
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": config.text.vocabulary,
        "projection_dim": config.text.width,
        "hidden_size": config.text.width,
        "vocab_size": config.text.vocabulary,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "text_config": gemma.to_transformers(config.text),
        "vision_config": write_eye(config.image) | {"projection_dim": config.text.width},
    }

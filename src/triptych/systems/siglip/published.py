"""SigLIP checkpoints: their names of tensors on the left, ours on the right; configurations.

Transformers and open_clip (whose image tower has timm's names) have a table each; big_vision's
arrays are in `big_vision.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

from triptych.config import errors_in
from triptych.systems.clip.configs import (
    TEXT_FIELDS,
    check_fields,
    choose,
    get_part,
    get_towers,
    mlp_ratio,
    read_number,
    read_tower,
    write_tower,
)
from triptych.systems.clip.published import (
    OPENAI_TEXT,
    TRANSFORMERS_BLOCK,
    TRANSFORMERS_TEXT,
    rename_layer,
)
from triptych.systems.siglip.model import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.weights.keymap import Rule, drop, rename, split, under

LOGITS = [
    rename("logit_scale", "logit_scale", "one number"),
    rename("logit_bias", "logit_bias", "one number"),
]

TRANSFORMERS = [
    *rename_layer("vision_model.embeddings.patch_embedding", "image.patch"),
    rename("vision_model.embeddings.position_embedding.weight", "image.position"),
    drop("vision_model.embeddings.position_ids"),
    *under(TRANSFORMERS_BLOCK, "vision_model.encoder.layers.{}.", "image.transformer.blocks.{}."),
    *rename_layer("vision_model.post_layernorm", "image.post_norm"),
    rename("vision_model.head.probe", "image.pool.probe", "one cell"),
    split(
        "vision_model.head.attention.in_proj_weight",
        *(f"image.pool.attn.{x}_proj.weight" for x in "qkv"),
    ),
    split(
        "vision_model.head.attention.in_proj_bias",
        *(f"image.pool.attn.{x}_proj.bias" for x in "qkv"),
    ),
    *rename_layer("vision_model.head.attention.out_proj", "image.pool.attn.out_proj"),
    *rename_layer("vision_model.head.layernorm", "image.pool.norm"),
    *rename_layer("vision_model.head.mlp.fc1", "image.pool.mlp.up"),
    *rename_layer("vision_model.head.mlp.fc2", "image.pool.mlp.down"),
    *under(TRANSFORMERS_TEXT, "text_model.", "text."),
    *rename_layer("text_model.head", "text.projection"),
    *LOGITS,
]

TIMM_BLOCK = [
    *rename_layer("norm1", "attn_norm"),
    split("attn.qkv.weight", *(f"attn.{x}_proj.weight" for x in "qkv")),
    split("attn.qkv.bias", *(f"attn.{x}_proj.bias" for x in "qkv")),
    *rename_layer("attn.proj", "attn.out_proj"),
    *rename_layer("norm2", "mlp_norm"),
    *rename_layer("mlp.fc1", "mlp.up"),
    *rename_layer("mlp.fc2", "mlp.down"),
]

TIMM_POOL = [
    rename("latent", "probe", "one cell"),
    *rename_layer("q", "attn.q_proj"),
    split("kv.weight", "attn.k_proj.weight", "attn.v_proj.weight"),
    split("kv.bias", "attn.k_proj.bias", "attn.v_proj.bias"),
    *rename_layer("proj", "attn.out_proj"),
    *rename_layer("norm", "norm"),
    *rename_layer("mlp.fc1", "mlp.up"),
    *rename_layer("mlp.fc2", "mlp.down"),
]


def open_clip_rules(naflex: bool = False) -> list[Rule]:
    """open_clip's names; its towers of native aspect ratio call the embedding differently."""
    place = "embeds" if naflex else ""
    grid = "grid" if naflex else "one row"
    return [
        *rename_layer(f"visual.trunk.{place or 'patch_embed'}.proj", "image.patch"),
        rename(f"visual.trunk.{place + '.' if place else ''}pos_embed", "image.position", grid),
        *under(TIMM_BLOCK, "visual.trunk.blocks.{}.", "image.transformer.blocks.{}."),
        *rename_layer("visual.trunk.norm", "image.post_norm"),
        *under(TIMM_POOL, "visual.trunk.attn_pool.", "image.pool."),
        *under(OPENAI_TEXT, "text.", "text."),
        *rename_layer("text.text_projection", "text.projection"),
        rename("logit_scale", "logit_scale"),
        rename("logit_bias", "logit_bias"),
    ]


def from_transformers(config: Mapping[str, Any]) -> SiglipConfig:
    """A transformers `config.json` of `model_type` siglip or siglip2.

    Raises:
        ValueError: a configuration of another family.
    """
    kind = config.get("model_type", "siglip")
    if kind not in ("siglip", "siglip2"):
        raise ValueError(f"{kind!r} is not SigLIP's model_type")
    vision, text = get_part(config, "vision_config"), get_part(config, "text_config")
    # only towers of native aspect ratio count patches instead of pixels
    naflex = kind == "siglip2" and "num_patches" in vision
    patch = read_number(vision, "patch_size", 16)
    side = vision.get("image_size", 224)
    if naflex:
        side = round(read_number(vision, "num_patches", 256) ** 0.5) * patch
    with errors_in("vision_config"):
        tower = read_tower(vision, "gelu_pytorch_tanh")
        image = SiglipImageConfig(size=side, patch=patch, naflex=naflex, **tower)
    with errors_in("text_config"):
        words = SiglipTextConfig(
            vocabulary=text.get("vocab_size", 32000),
            length=text.get("max_position_embeddings", 64),
            **read_tower(text, "gelu_pytorch_tanh"),
        )
    dim = text.get("projection_size", words.width)
    if dim != image.width:
        raise ValueError(f"texts are projected to {dim}, pictures to {image.width}")
    return SiglipConfig(image, words)


def to_transformers(config: SiglipConfig) -> dict[str, Any]:
    """Our configuration as a transformers `config.json`.

    Raises:
        ValueError: an architecture that transformers' SigLIP does not have.
    """
    image, text = config.image, config.text
    if text is None or not text.projection or image.stem:
        raise ValueError(
            "transformers' SigLIP has one patch filter and a text transformer with a projection. "
            "`triptych train siglip --preset plain` trains such a model"
        )
    kind = "siglip2" if image.naflex else "siglip"
    count = (image.size // image.patch) ** 2
    return {
        "architectures": ["Siglip2Model" if image.naflex else "SiglipModel"],
        "model_type": kind,
        "vision_config": {
            "model_type": f"{kind}_vision_model",
            **({"num_patches": count} if image.naflex else {"image_size": image.size}),
            "patch_size": image.patch,
            **write_tower(image),
        },
        "text_config": {
            "model_type": f"{kind}_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.length,
            "projection_size": image.width,
            **write_tower(text),
        },
    }


TIMM = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
"""Width, layers, heads and hidden width of timm's image towers, which open_clip only names."""
TIMM_TANH = (
    "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip_256", "vit_so400m_patch16_siglip_384",
    "vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384", "naflexvit_base_patch16_siglip",
    "naflexvit_so400m_patch16_siglip",
)  # fmt: skip
"""Towers whose GELU has the tanh form there; the others have the exact one (timm 1.0.31)."""
TIMM_NAME = re.compile(
    r"(naflex)?vit_(base|large|so400m|giantopt)_patch(14|16|32)_siglip(?:_(\d+))?"
)


def from_open_clip(model: Mapping[str, Any]) -> SiglipConfig:
    """The `model_cfg` of open_clip.

    Raises:
        ValueError: towers that are not SigLIP's, by their names.
    """
    vision, text = get_towers(model)
    name = vision.get("timm_model_name", "")
    tower = TIMM_NAME.fullmatch(name)
    if tower is None or "init_logit_bias" not in model:
        raise ValueError(f"the image tower {name!r} is not one of SigLIP's")
    check_fields(text, TEXT_FIELDS, "text_cfg")
    choose(text, "pool_type", "argmax", ("last",), "text_cfg")
    if not text.get("no_causal_mask", False):
        raise ValueError("text_cfg has a causal mask, which SigLIP's text tower does not have")
    naflex, patch = tower[1] is not None, int(tower[3])
    places = read_number(vision, "image_seq_len", 576)
    side = vision.get("image_size") or round(places**0.5) * patch
    if naflex:
        side = 16 * patch  # positions are learned on a grid of 16 x 16 for all pictures
    width = read_number(text, "width", 512)
    approximate = (text.get("act_kwargs") or {}).get("approximate", "none") == "tanh"
    return SiglipConfig(
        SiglipImageConfig(
            side,
            patch,
            *TIMM[tower[2]],
            activation="gelu_tanh" if name in TIMM_TANH else "gelu",
            naflex=naflex,
        ),
        SiglipTextConfig(
            vocabulary=text.get("vocab_size", 49408),
            length=text.get("context_length", 77),
            width=width,
            layers=text.get("layers", 12),
            heads=text.get("heads", 8),
            hidden=int(width * read_number(text, "mlp_ratio", 4.0)),
            activation="gelu_tanh" if approximate else "gelu",
            eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
            projection=text.get("proj_type", "linear") != "none",
        ),
    )


def to_open_clip(config: SiglipConfig) -> dict[str, Any]:
    """Our configuration as open_clip's `model_cfg`; only timm's sizes have a name there.

    Raises:
        ValueError: an image tower that timm has no name for.
    """
    image, text = config.image, config.text
    if text is None or image.stem:
        raise ValueError(
            "open_clip has no bag of words and no convolutional stem. A model of `triptych train "
            "siglip --preset plain` converts to transformers"
        )
    sizes = (image.width, image.layers, image.heads, image.hidden)
    named = [name for name, size in TIMM.items() if size == sizes]
    side = "" if image.naflex else f"_{image.size}"
    tower = f"{'naflexvit' if image.naflex else 'vit'}_{'-'.join(named)}_patch{image.patch}_siglip"
    tower += side
    if not named or (image.activation == "gelu_tanh") != (tower in TIMM_TANH):
        raise ValueError(
            "open_clip's SigLIP image towers are timm's, and timm has none with "
            f"{sizes} (width, layers, heads, hidden), {image.activation} and {image.size} "
            "pixels: convert to transformers instead"
        )
    return {
        "embed_dim": image.width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            **({} if image.naflex else {"image_size": image.size}),
            "timm_model_name": tower,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.length,
            "vocab_size": text.vocabulary,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": mlp_ratio(text.hidden, text.width),
            "no_causal_mask": True,
            "proj_bias": text.projection,
            **({} if text.projection else {"proj_type": "none"}),
            "pool_type": "last",
            "norm_kwargs": {"eps": text.eps},
            **({"act_kwargs": {"approximate": "tanh"}} if text.activation == "gelu_tanh" else {}),
        },
    }

"""CLIP configurations of other libraries to ours, and back; unknown settings are errors."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from triptych.config import errors_in
from triptych.fields import LARGEST
from triptych.systems.clip.model import ClipConfig, TextConfig, VitConfig
from triptych.systems.clip.resnet import ResNetConfig


def from_transformers(config: Mapping[str, Any]) -> ClipConfig:
    """A transformers `config.json` of `model_type` clip.

    What it leaves out has transformers' defaults (CLIP ViT-B/32).

    Raises:
        ValueError: a configuration of another family, or one that this CLIP does not have.
    """
    if config.get("model_type", "clip") != "clip":
        raise ValueError(f"model_type must be clip, not {config.get('model_type')!r}")
    vision, text = get_part(config, "vision_config"), get_part(config, "text_config")
    with errors_in("vision_config"):
        vit = read_vision(vision)
    with errors_in("text_config"):
        tower = read_text(text)
    return ClipConfig(dim=config.get("projection_dim", 512), vit=vit, text=tower)


def to_transformers(config: ClipConfig) -> dict[str, Any]:
    """Our configuration as a transformers `config.json`.

    Raises:
        ValueError: an architecture that transformers' CLIP does not have.
    """
    vit, text = config.vit, config.text
    if vit is None or text is None:
        raise ValueError("transformers' CLIP has a vision and a text transformer only: open_clip")
    plain = vit.pool == "class" and vit.pre_norm and not vit.layer_scale and not vit.stem
    if not plain or not text.causal or text.pool != "end":
        raise ValueError(
            "transformers' CLIP has a class token, a norm before the blocks, one patch filter and "
            "a causal text tower read at its end token, which this model does not have. "
            "`triptych train clip --preset plain` trains such a model"
        )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vit.size,
            "patch_size": vit.patch,
            **write_tower(vit),
            "projection_dim": config.dim,
        },
        "text_config": {
            "model_type": "clip_text_model",
            **write_text(text, config.dim),
        },
    }


TOWER = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "hidden_act": "activation",
    "layer_norm_eps": "eps",
}
"""Transformers' names of the settings of a transformer, and ours."""
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_tower(part: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """The settings in `TOWER` that are there, by our names; `activation` is the default."""
    name = part.get("hidden_act", activation)
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported: use {', '.join(ACTIVATIONS)}")
    settings = {ours: part[theirs] for theirs, ours in TOWER.items() if theirs in part}
    return settings | {"activation": ACTIVATIONS[name]}


def write_tower(tower: Any) -> dict[str, Any]:
    """The settings in `TOWER` of one of our towers, by transformers' names."""
    settings = {name: getattr(tower, ours) for name, ours in TOWER.items()}
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    return settings | {"hidden_act": theirs[tower.activation]}


def read_vision(part: Mapping[str, Any]) -> VitConfig:
    """Transformers' settings of a CLIP vision tower."""
    return VitConfig(
        size=part.get("image_size", 224),
        patch=part.get("patch_size", 32),
        **read_tower(part, "quick_gelu"),
    )


def read_text(part: Mapping[str, Any]) -> TextConfig:
    """Transformers' settings of a CLIP text tower. An `eos_token_id` of 2 is an error in early
    published files: it means the last token of the vocabulary.
    """
    vocabulary, end = part.get("vocab_size", 49408), part.get("eos_token_id", 49407)
    return TextConfig(
        vocabulary=vocabulary,
        length=part.get("max_position_embeddings", 77),
        end=vocabulary - 1 if end == 2 else end,
        **read_tower(part, "quick_gelu"),
    )


def write_text(text: TextConfig, dim: int) -> dict[str, Any]:
    """A CLIP text tower by transformers' names; `dim` is the width of the shared space."""
    return {
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.length,
        **write_tower(text),
        "projection_dim": dim,
        "bos_token_id": text.end - 1,
        "eos_token_id": text.end,
        "pad_token_id": text.end,
    }


def from_openai(state: Mapping[str, Tensor]) -> ClipConfig:
    """The configuration of OpenAI's archives, from the shapes of their tensors. All of them use
    QuickGELU, and towers have a head for every 64 channels.
    """
    dim = state["text_projection"].shape[1]
    width = state["ln_final.weight"].shape[0]
    vocabulary, length = len(state["token_embedding.weight"]), len(state["positional_embedding"])
    text = TextConfig(
        vocabulary=vocabulary,
        length=length,
        width=width,
        layers=_count(state, "transformer.resblocks."),
        heads=width // 64,
        hidden=4 * width,
        activation="quick_gelu",
        end=vocabulary - 1,
    )
    if "visual.proj" not in state:
        planes = len(state["visual.attnpool.positional_embedding"]) - 1
        channels = state["visual.attnpool.positional_embedding"].shape[1]
        stages = tuple(_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        resnet = ResNetConfig(round(planes**0.5) * 32, channels // 32, stages, heads=channels // 64)
        return ClipConfig(dim, vit=None, resnet=resnet, text=text)
    wide, _, patch, _ = state["visual.conv1.weight"].shape
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vit = VitConfig(
        size=side * patch,
        patch=patch,
        width=wide,
        layers=_count(state, "visual.transformer.resblocks."),
        heads=wide // 64,
        hidden=4 * wide,
        activation="quick_gelu",
    )
    return ClipConfig(dim, vit=vit, text=text)


def from_open_clip(model: Mapping[str, Any]) -> ClipConfig:
    """The `model_cfg` of open_clip.

    Raises:
        ValueError: towers that are not CLIP's, by their names.
    """
    vision, text = get_towers(model)
    if "timm_model_name" in vision:
        raise ValueError(f"the image tower {vision['timm_model_name']!r} is not one of CLIP's")
    check_fields(vision, VISION_FIELDS, "vision_cfg")
    check_fields(text, TEXT_FIELDS, "text_cfg")
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    width, vocabulary = read_number(text, "width", 512), read_number(text, "vocab_size", 49408)
    pool = TEXT_POOLS[choose(text, "pool_type", "argmax", TEXT_POOLS, "text_cfg")]
    image_pool = IMAGE_POOLS[choose(vision, "pool_type", "tok", IMAGE_POOLS, "vision_cfg")]
    tower = TextConfig(
        vocabulary=vocabulary,
        length=text.get("context_length", 77),
        width=width,
        layers=text.get("layers", 12),
        heads=text.get("heads", 8),
        hidden=int(width * read_number(text, "mlp_ratio", 4.0)),
        activation=activation,  # type: ignore[arg-type]
        causal=not text.get("no_causal_mask", False),
        pool=pool,
        end=text.get("eos_id", 2) if text.get("pool_type") == "eos" else vocabulary - 1,
    )
    size, wide = vision.get("image_size", 224), read_number(vision, "width", 768)
    head_width = read_number(vision, "head_width", 64)
    if isinstance(vision.get("layers"), list | tuple):
        stages = tuple(vision["layers"])
        # open_clip: a head for every head_width (64) of 32 widths
        heads = wide * 32 // head_width
        resnet = ResNetConfig(size, wide, stages, heads=heads)
        return ClipConfig(model["embed_dim"], vit=None, resnet=resnet, text=tower)
    vit = VitConfig(
        size=size,
        patch=vision.get("patch_size", 16),
        width=wide,
        layers=vision.get("layers", 12),
        heads=wide // head_width,
        hidden=int(wide * read_number(vision, "mlp_ratio", 4.0)),
        activation=activation,  # type: ignore[arg-type]
        pool=image_pool,
        pre_norm=not vision.get("no_ln_pre", False),
        layer_scale=vision.get("ls_init_value") is not None,
        norm_after_pool=vision.get("final_ln_after_pool", False),
    )
    return ClipConfig(model["embed_dim"], vit=vit, text=tower)


def to_open_clip(config: ClipConfig) -> dict[str, Any]:
    """Our configuration as open_clip's `model_cfg`.

    Raises:
        ValueError: an architecture that open_clip does not have.
    """
    text = config.text
    if text is None or (config.vit is not None and config.vit.stem):
        raise ValueError(
            "open_clip has no bag of words and no convolutional stem. `triptych train clip "
            "--preset plain` trains a model without"
        )
    if text.pool == "mean":
        raise ValueError(
            "open_clip cannot pool the mean of a text: the text tower must use end or last, as of "
            "`triptych train clip --preset plain`"
        )
    if text.pool == "end" and text.end != text.vocabulary - 1:
        raise ValueError("open_clip's CLIP reads the highest token; this one has another end token")
    towers: list[VitConfig | TextConfig] = [text] + ([config.vit] if config.vit else [])
    kinds = {tower.activation for tower in towers}
    if len(kinds) > 1 or "gelu_tanh" in kinds:
        raise ValueError(f"open_clip's towers share gelu or quick_gelu; these use {sorted(kinds)}")
    model: dict[str, Any] = {"embed_dim": config.dim, "quick_gelu": kinds == {"quick_gelu"}}
    model["text_cfg"] = {
        "context_length": text.length,
        "vocab_size": text.vocabulary,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": mlp_ratio(text.hidden, text.width),
        "no_causal_mask": not text.causal,
        "pool_type": "argmax" if text.pool == "end" else "last",
    }
    if config.resnet is not None:
        net = config.resnet
        model["vision_cfg"] = {
            "image_size": net.size,
            "layers": list(net.layers),
            "width": net.width,
            "head_width": net.width * 32 // net.heads,
            "patch_size": None,
        }
        return model
    vit = config.vit
    assert vit is not None
    model["vision_cfg"] = {
        "image_size": vit.size,
        "patch_size": vit.patch,
        "width": vit.width,
        "layers": vit.layers,
        "head_width": vit.width // vit.heads,
        "mlp_ratio": mlp_ratio(vit.hidden, vit.width),
        "pool_type": "tok" if vit.pool == "class" else "avg",
        "no_ln_pre": not vit.pre_norm,
        "final_ln_after_pool": vit.norm_after_pool,
        "ls_init_value": 1e-4 if vit.layer_scale else None,
    }
    return model


TEXT_POOLS: dict[str, Literal["end", "last"]] = {"argmax": "end", "eos": "end", "last": "last"}
IMAGE_POOLS: dict[str, Literal["class", "mean"]] = {"tok": "class", "avg": "mean"}
"""open_clip's names of what is read of a tower, and ours."""
VISION_FIELDS = (
    "image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "ls_init_value",
    "no_ln_pre", "pool_type", "final_ln_after_pool", "patch_dropout",
)  # fmt: skip
TEXT_FIELDS = (
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask",
    "pool_type", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs", "proj_bias", "norm_kwargs",
    "act_kwargs", "proj_type",
)  # fmt: skip


def get_towers(model: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The vision and text parts of open_clip's `model_cfg`.

    Raises:
        ValueError: the model also reads audio or writes captions, or has another text model.
    """
    for part, what in (
        ("audio_cfg", "reads audio (CLAP)"),
        ("genlap_cfg", "generates (GenLAP)"),
        ("genlip_cfg", "generates (GenLIP)"),
        ("multimodal_cfg", "also writes captions (CoCa)"),
    ):
        if part in model:
            raise ValueError(f"this open_clip model {what}, which is not supported")
    vision, text = get_part(model, "vision_cfg"), get_part(model, "text_cfg")
    if "hf_model_name" in text:
        raise ValueError(f"its text tower is {text['hf_model_name']}, which is not supported")
    if text.get("text_arch", "") not in ("", "default"):
        raise ValueError(f"its text tower is of kind {text['text_arch']!r}, which is not supported")
    return vision, text


def check_fields(part: Mapping[str, Any], fields: Sequence[str], where: str) -> None:
    """Refuse unknown fields, which may change the architecture.

    Raises:
        ValueError: names them.
    """
    if unknown := sorted(set(part) - set(fields)):
        raise ValueError(f"{where} has {', '.join(unknown)}, which is not supported")


def choose(
    part: Mapping[str, Any], name: str, default: str, choices: Collection[str], where: str
) -> str:
    """A setting that names one of several ways.

    Raises:
        ValueError: it names another, and which there are.
    """
    value = part.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{where} has the {name} {value!r}, which is not supported: {', '.join(choices)}"
        )
    return value


def read_number(part: Mapping[str, Any], name: str, default: float) -> Any:
    """A number to compute with: the product of a text and a number would be a longer text.

    Raises:
        ValueError: it is something else, not positive, or larger than any size.
    """
    value = part.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= LARGEST:
        raise ValueError(f"{name} must be a number above 0, up to {LARGEST:,}, not {value!r:.60}")
    return value


def get_part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    if part is None:
        return {}
    if not isinstance(part, Mapping):
        raise ValueError(f"{name} must be an object, not {type(part).__name__}")
    return part


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """The number of layers with this prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio that open_clip multiplies a width by and rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)

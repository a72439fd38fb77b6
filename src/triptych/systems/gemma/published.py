"""Gemma checkpoints of transformers: their names of tensors on the left, ours on the right; their
configurations.
"""

from collections.abc import Mapping
from typing import Any

from triptych.systems.gemma.model import GemmaConfig
from triptych.weights.keymap import Rule, drop, rename, under

KINDS = {"gemma": 1, "gemma2": 2, "gemma3_text": 3, "gemma3": 3}
"""Generations by transformers' `model_type`; `gemma3` is a language model beside a picture part."""
TEXT = 262_144
"""Tokens of Gemma 3's vocabulary; files of 4B and more have 64 spare rows, which no text uses."""
PREFIXES = ("model.language_model.", "language_model.model.")
"""Before the names of the language part of a `gemma3`, as transformers 5 and 4 write them."""
PICTURES = ("vision_tower", "multi_modal_projector")

BLOCK = [
    rename("input_layernorm.weight", "attn_norm.weight"),
    *(rename(f"self_attn.{x}_proj.weight", f"attn.{x}_proj.weight") for x in "qkv"),
    rename("self_attn.o_proj.weight", "attn.out_proj.weight"),
    *(rename(f"mlp.{x}_proj.weight", f"mlp.{x}.weight") for x in ("gate", "up", "down")),
]
POST_NORMS = [
    rename("post_attention_layernorm.weight", "attn_post_norm.weight"),
    rename("pre_feedforward_layernorm.weight", "mlp_norm.weight"),
    rename("post_feedforward_layernorm.weight", "mlp_post_norm.weight"),
]
HEAD_NORMS = [rename(f"self_attn.{x}_norm.weight", f"attn.{x}_norm.weight") for x in "qk"]


def rules(config: GemmaConfig) -> list[Rule]:
    """transformers' names of a language model of this configuration."""
    block = [*BLOCK, *(HEAD_NORMS if config.head_norms else [])]
    if config.post_norms:
        block += POST_NORMS
    else:  # what Gemma 1 calls so stands before the MLP
        block += [rename("post_attention_layernorm.weight", "mlp_norm.weight")]
    return [
        rename("model.embed_tokens.weight", "token.weight"),
        *under(block, "model.layers.{}.", "blocks.{}."),
        rename("model.norm.weight", "norm.weight"),
        # a tied head is stored by some programs, the same values again
        drop("lm_head.weight") if config.tied else rename("lm_head.weight", "head.weight"),
    ]


def from_transformers(config: Mapping[str, Any]) -> GemmaConfig:
    """A transformers `config.json` of `model_type` gemma, gemma2, gemma3_text or gemma3.

    What a file leaves out has transformers' default of its generation.

    Raises:
        ValueError: a model of another family, or one with settings that Gemma does not have.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"its model_type is {kind!r}; supported: {', '.join(KINDS)}")
    generation = KINDS[kind]
    stored = config.get("text_config", {}) if kind == "gemma3" else config
    if not isinstance(stored, Mapping):
        raise ValueError("its text_config is no object")
    _check(stored)
    sizes = {name: stored.get(key, DEFAULTS[generation][key]) for name, key in SIZES.items()}
    vocabulary = stored.get("vocab_size", 256_000 if generation < 3 else 262_208)
    window = stored.get("sliding_window", 4096) if generation > 1 else None
    capped = generation == 2
    return GemmaConfig(
        vocabulary=TEXT if vocabulary == TEXT + 64 else vocabulary,
        **sizes,
        post_norms=generation > 1,
        head_norms=generation == 3,
        attention_cap=stored.get("attn_logit_softcapping", 50.0 if capped else None),
        logit_cap=stored.get("final_logit_softcapping", 30.0 if capped else None),
        window=window,
        pattern=_pattern(stored, generation, sizes["layers"]),
        query_scale=float(stored.get("query_pre_attn_scalar", 256))
        if generation > 1
        else float(sizes["head_width"]),
        tied=stored.get("tie_word_embeddings", True),
        eps=stored.get("rms_norm_eps", 1e-6),
        **_rotary(stored, generation),
    )


SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
}
DEFAULTS: dict[int, dict[str, int]] = {
    generation: dict(zip(SIZES.values(), sizes, strict=True))
    for generation, sizes in {
        1: (3072, 28, 16, 16, 256, 24576, 8192),
        2: (2304, 26, 8, 4, 256, 9216, 8192),
        3: (2304, 26, 8, 4, 256, 9216, 131_072),
    }.items()
}


def _check(stored: Mapping[str, Any]) -> None:
    """Refuse what would be computed otherwise than the file means."""
    if stored.get("attention_bias", False):
        raise ValueError("its attention has biases, which Gemma does not have")
    if stored.get("use_bidirectional_attention"):
        raise ValueError(
            "it attends in both directions: an embedding model, not a Gemma that talks"
        )
    # "gelu" in the oldest files means the tanh form (transformers PR 29402)
    activation = stored.get("hidden_activation") or stored.get("hidden_act") or "gelu"
    if activation not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"its activation is {activation!r}, and Gemma's is gelu_pytorch_tanh")


def _pattern(stored: Mapping[str, Any], generation: int, layers: int) -> int:
    """Every how-manieth layer sees everything."""
    if generation == 1:
        return 1
    kinds = stored.get("layer_types")
    if kinds is None:
        return int(stored.get("sliding_window_pattern", {2: 2, 3: 6}[generation]))
    sees_all = [kind == "full_attention" for kind in kinds]
    pattern = sees_all.index(True) + 1 if True in sees_all else layers + 1
    expected = [(i + 1) % pattern == 0 for i in range(layers)]
    if sees_all != expected or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise ValueError("its layer_types follow no pattern of Gemma's: every n-th sees everything")
    return pattern


def _rotary(stored: Mapping[str, Any], generation: int) -> dict[str, Any]:
    """Rotary bases and the factor, in the words of transformers 4 or 5."""
    written = stored.get("rope_parameters") or {}
    if generation < 3:
        base = float(written.get("rope_theta", stored.get("rope_theta", 10_000.0)))
        if written.get("rope_type", "default") != "default" or stored.get("rope_scaling"):
            raise ValueError("its rotary positions are scaled, which Gemma 1 and 2 do not have")
        return {"base": base, "window_base": base}
    whole = dict(written.get("full_attention") or {}) | dict(stored.get("rope_scaling") or {})
    part = written.get("sliding_attention") or {}
    kind = whole.get("rope_type", whole.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ValueError(f"its rotary positions are scaled by {kind!r}; supported: linear")
    return {
        "base": float(whole.get("rope_theta", stored.get("rope_theta", 1_000_000.0))),
        "window_base": float(part.get("rope_theta", stored.get("rope_local_base_freq", 10_000.0))),
        "stretch": float(whole.get("factor", 1.0)) if kind == "linear" else 1.0,
    }


def to_transformers(config: GemmaConfig) -> dict[str, Any]:
    """Our configuration as a transformers `config.json`.

    Raises:
        ValueError: a mixture of the generations that transformers has no model for.
    """
    generation = 3 if config.head_norms else 2 if config.post_norms else 1
    kind = {1: "gemma", 2: "gemma2", 3: "gemma3_text"}[generation]
    name = {1: "Gemma", 2: "Gemma2", 3: "Gemma3"}[generation]
    stored: dict[str, Any] = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocabulary,
        **{key: getattr(config, field) for field, key in SIZES.items()},
        "hidden_act" if generation == 1 else "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if generation < 3:
        stored["rope_theta"] = config.base
    else:
        stored["rope_theta"], stored["rope_local_base_freq"] = config.base, config.window_base
        if config.stretch != 1:
            stored["rope_scaling"] = {"rope_type": "linear", "factor": config.stretch}
    if generation > 1:
        stored |= {
            "sliding_window": config.window,
            "layer_types": [
                "full_attention" if window is None else "sliding_attention"
                for window in config.windows
            ],
            # a whole number there
            "query_pre_attn_scalar": round(config.query_scale),
            "attn_logit_softcapping": config.attention_cap,
            "final_logit_softcapping": config.logit_cap,
        }
    if from_transformers(stored) != config:
        raise ValueError(
            f"transformers' {name} does not have this mixture of settings: only those of one "
            "generation convert"
        )
    return stored

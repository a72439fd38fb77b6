"""T5 checkpoints of transformers: their names of tensors on the left, ours on the right; their
configurations.

PaLI-3 itself was never published, and transformers does not have it. As a folder it is a T5 of
transformers, which loads there, with its eye, a SiglipVisionModel, in `vision`, and the layer
between them in `projector.safetensors`.
"""

from collections.abc import Mapping
from typing import Any

from triptych.systems.pali.t5 import T5Config
from triptych.weights.keymap import Rule, drop, rename, under

ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
MLP = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
BIAS = "relative_attention_bias.weight"
VISION = "vision"
"""The folder of the eye."""
PROJECTOR = "projector.safetensors"


def rules(config: T5Config) -> list[Rule]:
    """transformers' names of a T5 of this configuration."""
    encoder = [*_attention(0, "SelfAttention", "attn"), *_mlp(1)]
    decoder = [
        *_attention(0, "SelfAttention", "attn"),
        *_attention(1, "EncDecAttention", "cross"),
        *_mlp(2),
    ]
    return [
        rename("shared.weight", "token.weight"),
        drop("encoder.embed_tokens.weight"),  # the same table again
        drop("decoder.embed_tokens.weight"),
        rename(f"encoder.block.0.layer.0.SelfAttention.{BIAS}", "encoder_bias.weight"),
        rename(f"decoder.block.0.layer.0.SelfAttention.{BIAS}", "decoder_bias.weight"),
        *under(encoder, "encoder.block.{}.", "encoder.{}."),
        *under(decoder, "decoder.block.{}.", "decoder.{}."),
        rename("encoder.final_layer_norm.weight", "encoder_norm.weight"),
        rename("decoder.final_layer_norm.weight", "decoder_norm.weight"),
        drop("lm_head.weight") if config.tied else rename("lm_head.weight", "head.weight"),
    ]


def _attention(layer: int, theirs: str, ours: str) -> list[Rule]:
    names = ATTENTION.items()
    return [
        *(rename(f"layer.{layer}.{theirs}.{a}.weight", f"{ours}.{b}.weight") for a, b in names),
        rename(f"layer.{layer}.layer_norm.weight", f"{ours}_norm.weight"),
    ]


def _mlp(layer: int) -> list[Rule]:
    names = MLP.items()
    return [
        *(rename(f"layer.{layer}.DenseReluDense.{a}.weight", f"mlp.{b}.weight") for a, b in names),
        rename(f"layer.{layer}.layer_norm.weight", "mlp_norm.weight"),
    ]


def from_transformers(config: Mapping[str, Any]) -> T5Config:
    """A transformers `config.json` of `model_type` t5, of version 1.1.

    Raises:
        ValueError: another model, or the MLPs of version 1.0.
    """
    if config.get("model_type") != "t5":
        raise ValueError(f"its model_type is {config.get('model_type')!r}, not 't5'")
    activation = config.get("feed_forward_proj", "relu")
    if activation != "gated-gelu":
        raise ValueError(f"its MLPs are {activation!r}; supported: gated-gelu, of T5 1.1")
    layers = config.get("num_layers", 6)
    # version 1.1 says that they are not tied; transformers 5 writes the second instead
    tied = config.get("tie_word_embeddings", True) and config.get("scale_decoder_outputs", True)
    return T5Config(
        vocabulary=config.get("vocab_size", 32_128),
        width=config.get("d_model", 512),
        layers=layers,
        decoder_layers=config.get("num_decoder_layers") or layers,
        heads=config.get("num_heads", 8),
        head_width=config.get("d_kv", 64),
        hidden=config.get("d_ff", 2048),
        buckets=config.get("relative_attention_num_buckets", 32),
        distance=config.get("relative_attention_max_distance", 128),
        tied=tied,
        eps=config.get("layer_norm_epsilon", 1e-6),
    )


def to_transformers(config: T5Config) -> dict[str, Any]:
    """Our configuration as a `config.json` of transformers' T5."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": config.vocabulary,
        "d_model": config.width,
        "d_kv": config.head_width,
        "d_ff": config.hidden,
        "num_layers": config.layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.distance,
        "n_positions": config.context,
        "layer_norm_epsilon": config.eps,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.tied,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }

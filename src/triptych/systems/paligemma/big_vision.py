"""PaliGemma as big_vision stores it (`.npz`): every array under our names; its configuration, from
the shapes. The layers of both halves are stacked along a first axis
(github.com/google-research/big_vision, models/ppp/gemma.py).

Dimensions: L layers, D width, H heads, K key/value heads, C head width, F hidden width.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from triptych.systems.gemma.gguf import QUERY_SCALES
from triptych.systems.gemma.model import GemmaConfig
from triptych.systems.paligemma.model import PaliGemmaConfig
from triptych.systems.siglip import big_vision as siglip
from triptych.systems.siglip.model import SiglipImageConfig

TABLE = "llm/embedder/input_embedding"
LAYERS = "llm/layers/"
ATTENTION = LAYERS + "attn/"
SINGLE = {
    "img/head/bias": "projector.bias",
    TABLE: "text.token.weight",
    "llm/final_norm/scale": "text.norm.weight",
}
NORMS = {
    "pre_attention_norm": "attn_norm",
    "post_attention_norm": "attn_post_norm",
    "pre_ffw_norm": "mlp_norm",
    "post_ffw_norm": "mlp_post_norm",
}
BLOCK = "img/Transformer/encoderblock/"
NEEDED = (
    TABLE, "img/embedding/kernel", "img/pos_embedding", "img/head/kernel",
    BLOCK + siglip.QUERY, BLOCK + siglip.UP, ATTENTION + "attn_vec_einsum/w", LAYERS + "mlp/linear",
)  # fmt: skip


def plain(name: str) -> str:
    """The name of an array without the prefix that whole checkpoints have."""
    return name.removeprefix("params/")


def read_config(named: Mapping[str, tuple[int, ...]]) -> PaliGemmaConfig:
    """The configuration from the shapes of the arrays; norms after a layer are Gemma 2's.

    Raises:
        ValueError: an array is missing, or has another number of dimensions.
    """
    shapes = {plain(name): shape for name, shape in named.items()}
    if missing := [name for name in NEEDED if name not in shapes]:
        raise ValueError(
            f"it has no {missing[0]}: not a PaliGemma of big_vision's, or an incomplete one"
        )
    try:
        return _config(shapes)
    except (ValueError, IndexError) as error:
        if isinstance(error, ValueError) and "unpack" not in str(error):
            raise
        raise ValueError("an array has another number of dimensions than a PaliGemma's") from error


def _config(shapes: Mapping[str, tuple[int, ...]]) -> PaliGemmaConfig:
    patch, _, _, width = shapes["img/embedding/kernel"]
    layers, _, heads, _ = shapes[BLOCK + siglip.QUERY]
    side = round(shapes["img/pos_embedding"][-2] ** 0.5)
    image = SiglipImageConfig(
        side * patch, patch, width, layers, heads, shapes[BLOCK + siglip.UP][2], pooled=False
    )
    vocabulary, width = shapes[TABLE]
    layers, heads, head, _ = shapes[ATTENTION + "attn_vec_einsum/w"]
    kv_heads = shapes.get(ATTENTION + "kv_einsum/w", (layers, 2, heads))[2]
    second = LAYERS + "post_attention_norm/scale" in shapes
    text = GemmaConfig(
        vocabulary, width, layers, heads, kv_heads, head, shapes[LAYERS + "mlp/linear"][1], 8192,
        post_norms=second, head_norms=False, window=None, pattern=1, base=10_000.0,
        query_scale=QUERY_SCALES.get((layers, width), float(head)),
    )  # fmt: skip
    if second:  # as transformers computes it: big_vision itself has no window
        text = replace(text, attention_cap=50.0, logit_cap=30.0, window=4096, pattern=2)
    return PaliGemmaConfig(image, text)


def convert(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """big_vision's arrays under our names.

    Raises:
        ValueError: an array that is not of a PaliGemma, or of another shape.
    """
    state = {plain(name): x for name, x in named.items()}
    eye = {k: x for k, x in state.items() if k.startswith("img/") and "/head/" not in k}
    converted = siglip.convert(eye)
    for name, x in state.items():
        if name in eye:
            continue
        try:
            converted |= _convert(name, x)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{name} has the shape {tuple(x.shape)}, unlike others") from error
    return converted


def _convert(name: str, x: Tensor) -> dict[str, Tensor]:
    """One array that is not of the eye."""
    if name == "img/head/kernel":
        return {"projector.weight": x.T}
    if name in SINGLE:
        return {SINGLE[name]: x}
    if not name.startswith(LAYERS):
        raise ValueError(f"{name} is not an array of a PaliGemma")
    found = {}
    for layer, part in enumerate(x.unbind()):
        for ours, tensor in _layer(name.removeprefix(LAYERS), part).items():
            found[f"text.blocks.{layer}.{ours}"] = tensor
    return found


def _layer(name: str, x: Tensor) -> dict[str, Tensor]:
    """One array of one layer of the language model."""
    if name == "attn/q_einsum/w":  # (H, D, C)
        return {"attn.q_proj.weight": _rows(x)}
    if name in ("attn/kv_einsum/w", "attn/qkv_einsum/w"):  # (2 or 3, K, D, C)
        parts = "kv" if name == "attn/kv_einsum/w" else "qkv"
        return {f"attn.{p}_proj.weight": _rows(x[i]) for i, p in enumerate(parts)}
    if name == "attn/attn_vec_einsum/w":  # (H, C, D)
        return {"attn.out_proj.weight": x.flatten(0, 1).T}
    if name == "mlp/gating_einsum":  # (2, D, F)
        return {"mlp.gate.weight": x[0].T, "mlp.up.weight": x[1].T}
    if name == "mlp/linear":  # (F, D)
        return {"mlp.down.weight": x.T}
    norm = name.removesuffix("/scale")
    if norm in NORMS:
        return {f"{NORMS[norm]}.weight": x}
    raise ValueError(f"{LAYERS}{name} is not an array of a PaliGemma")


def _rows(x: Tensor) -> Tensor:
    """(H, D, C) as the matrix of a linear layer (H C, D)."""
    return x.transpose(1, 2).flatten(0, 1)

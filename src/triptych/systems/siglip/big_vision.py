"""SigLIP as big_vision stores it (`.npz`): every array under our names.

Linear layers are kernels (in, out), attention has a separate axis of heads, and the layers of a
tower are either numbered or stacked along a first axis. SigLIP and SigLIP 2 are published like this
(github.com/google-research/big_vision).

Dimensions: D width, H heads, C head width, L layers.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.systems.siglip.model import SiglipConfig, SiglipImageConfig, SiglipTextConfig

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
BLOCK = {
    "LayerNorm_0": "attn_norm",
    "LayerNorm_1": "mlp_norm",
    "MlpBlock_0/Dense_0": "mlp.up",
    "MlpBlock_0/Dense_1": "mlp.down",
} | {f"MultiHeadDotProductAttention_0/{k}": f"attn.{v}" for k, v in ATTENTION.items()}
POOL = BLOCK | {"LayerNorm_0": "norm"}
LAYERS = {
    "img/embedding": "image.patch",
    "img/Transformer/encoder_norm": "image.post_norm",
    "txt/Encoder_0/encoder_norm": "text.post_norm",
    "txt/head": "text.projection",
}
SINGLE = {
    "img/pos_embedding": "image.position",
    "img/MAPHead_0/probe": "image.pool.probe",
    "txt/Embed_0/embedding": "text.token.weight",
    "txt/pos_embedding": "text.position",
    "t": "logit_scale",
    "b": "logit_bias",
}
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
TOWERS = {"img/Transformer": "image", "txt/Encoder_0": "text"}
QUERY, UP = "MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel"
MAX_LAYERS = 1000
LAYER = re.compile(r"(img/Transformer|txt/Encoder_0)/encoderblock_(\d+)/(.+)/(kernel|scale|bias)")


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """big_vision's arrays under our names.

    Raises:
        ValueError: an array that is not of a SigLIP.
    """
    renamed: dict[str, Tensor] = {}
    for key, array in unstack(state).items():
        try:
            renamed[_rename(key)] = _reshape(key, array)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{key} has the shape {tuple(array.shape)}, unlike others") from error
    return renamed


def unstack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers stacked layers, and removes the prefix `params/`."""
    flat: dict[str, Tensor] = {}
    for key, array in state.items():
        name = key.removeprefix("params/")
        if "/encoderblock/" not in name:
            flat[name] = array
            continue
        if not array.ndim or len(array) > MAX_LAYERS:
            raise ValueError(f"{key} is no stack of layers: its shape is {tuple(array.shape)}")
        for layer, part in enumerate(array.unbind()):
            flat[name.replace("/encoderblock/", f"/encoderblock_{layer}/")] = part
    return flat


def configuration(state: Mapping[str, Tensor], heads: int | None = None) -> SiglipConfig:
    """The configuration, from the shapes of the arrays. Activations are GELU's tanh form, as
    big_vision's `nn.gelu`.

    Raises:
        ValueError: an array that every SigLIP has is missing.
    """
    flat = unstack(state)
    needed = ["img/embedding/kernel", "img/pos_embedding", "txt/Embed_0/embedding"]
    needed += ["txt/pos_embedding"]
    for tower in TOWERS:
        needed += [f"{tower}/encoderblock_0/{part}" for part in (QUERY, UP)]
    if missing := [name for name in needed if name not in flat]:
        raise ValueError(
            f"it has no {missing[0]}: not a SigLIP of big_vision's, or an incomplete one"
        )
    kernel = flat["img/embedding/kernel"]
    naflex = kernel.ndim == 2
    patch = round((kernel.shape[0] / 3) ** 0.5) if naflex else kernel.shape[0]
    width = kernel.shape[-1]
    positions = flat["img/pos_embedding"]
    places = positions.numel() // width
    first = {tower: f"{tower}/encoderblock_0/" for tower in TOWERS}
    image, text = first["img/Transformer"], first["txt/Encoder_0"]
    words = flat["txt/Embed_0/embedding"]
    return SiglipConfig(
        SiglipImageConfig(
            size=round(places**0.5) * patch,
            patch=patch,
            width=width,
            layers=_layers(flat, "img/Transformer"),
            heads=heads or flat[image + QUERY].shape[1],
            hidden=flat[image + UP].shape[1],
            naflex=naflex,
        ),
        SiglipTextConfig(
            vocabulary=words.shape[0],
            length=flat["txt/pos_embedding"].shape[-2],
            width=words.shape[1],
            layers=_layers(flat, "txt/Encoder_0"),
            heads=flat[text + QUERY].shape[1],
            hidden=flat[text + UP].shape[1],
            projection="txt/head/kernel" in flat,
        ),
    )


def _layers(flat: Mapping[str, Tensor], tower: str) -> int:
    return len({m[2] for name in flat if (m := LAYER.fullmatch(name)) and m[1] == tower})


def _rename(name: str) -> str:
    if name in SINGLE:
        return SINGLE[name]
    if (layer := LAYER.fullmatch(name)) and layer[3] in BLOCK:
        tower, number, part, kind = layer.groups()
        return f"{TOWERS[tower]}.transformer.blocks.{number}.{BLOCK[part]}.{KINDS[kind]}"
    place, _, kind = name.rpartition("/")
    part = place.removeprefix("img/MAPHead_0/")
    if part != place and part in POOL and kind in KINDS:
        return f"image.pool.{POOL[part]}.{KINDS[kind]}"
    if place in LAYERS and kind in KINDS:
        return f"{LAYERS[place]}.{KINDS[kind]}"
    raise ValueError(f"{name} is not an array of a SigLIP")


def _reshape(name: str, array: Tensor) -> Tensor:
    """Reshape an array to PyTorch's layout."""
    if name in ("t", "b"):
        return array.reshape(())
    if name == "img/MAPHead_0/probe":
        return array.reshape(-1)
    if name.endswith("pos_embedding"):
        return array.reshape(-1, array.shape[-1])
    if "MultiHeadDotProductAttention_0/out/kernel" in name:
        return array.flatten(0, 1).T.contiguous()  # (H, C, D)
    if "MultiHeadDotProductAttention_0" in name and name.endswith("kernel"):
        return array.flatten(1, 2).T.contiguous()  # (D, H, C)
    if "MultiHeadDotProductAttention_0" in name and not name.endswith("out/bias"):
        return array.flatten()  # (H, C)
    if name.endswith("kernel") and array.ndim == 4:
        return array.permute(3, 2, 0, 1).contiguous()  # (h, w, C, D)
    if name.endswith("kernel"):
        return array.T.contiguous()
    return array

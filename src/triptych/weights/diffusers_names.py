"""Names of layers that several networks of diffusers share, and the fields of configurations."""

from collections.abc import Collection, Mapping
from typing import Any

from triptych.weights.keymap import Rule, rename, under


def layer(theirs: str, ours: str, form: str = "") -> list[Rule]:
    """The rules for the weight and bias of one layer; `form` is that of the weight."""
    return [
        rename(f"{theirs}.weight", f"{ours}.weight", form),
        rename(f"{theirs}.bias", f"{ours}.bias"),
    ]


RESIDUAL = [
    *layer("norm1", "norm1"),
    *layer("conv1", "conv1"),
    *layer("time_emb_proj", "feature_proj"),
    *layer("norm2", "norm2"),
    *layer("conv2", "conv2"),
    *layer("conv_shortcut", "shortcut"),
]
"""Of a residual block."""

UNET = [
    *layer("time_embedding.linear_1", "time.up"),
    *layer("time_embedding.linear_2", "time.down"),
    *layer("conv_in", "conv_in"),
    *under(RESIDUAL, "down_blocks.{}.resnets.{}.", "down.{}.blocks.{}.residual."),
    *layer("down_blocks.{}.downsamplers.0.conv", "down.{}.downsample.conv"),
    *under(RESIDUAL, "up_blocks.{}.resnets.{}.", "up.{}.blocks.{}.residual."),
    *layer("up_blocks.{}.upsamplers.0.conv", "up.{}.upsample.conv"),
    *layer("conv_norm_out", "norm_out"),
    *layer("conv_out", "conv_out"),
]
"""Of a U-Net, without its middle and attention."""


def check_fields(
    config: Mapping[str, Any],
    supported: Mapping[str, tuple[Any, ...]],
    others: Collection[str],
    whose: str = "",
) -> None:
    """Refuse a field that is neither in `supported`, with one of these values, nor in `others`.
    Those with an underscore are diffusers' bookkeeping.

    Raises:
        ValueError: such a field, or a value of one, that is not supported.
    """
    for name, value in config.items():
        if name.startswith("_") or name in others:
            continue
        if name not in supported:
            raise ValueError(f"{whose or 'the '}field {name} ({value!r}) is not supported")
        if value not in supported[name]:
            values = " or ".join(map(repr, supported[name]))
            raise ValueError(f"{whose}{name} is {value!r}; supported: {values}")

"""Rules for the names of layers that several networks of diffusers share."""

from triptych.weights.keymap import Rule, rename


def layer(theirs: str, ours: str) -> list[Rule]:
    """The rules for the weight and bias of one layer."""
    return [rename(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


RESIDUAL = [
    *layer("norm1", "norm1"),
    *layer("conv1", "conv1"),
    *layer("time_emb_proj", "feature_proj"),
    *layer("norm2", "norm2"),
    *layer("conv2", "conv2"),
    *layer("conv_shortcut", "shortcut"),
]
"""Of a residual block."""

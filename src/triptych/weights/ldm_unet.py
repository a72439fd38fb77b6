"""The U-Net of a single file: the names of LDM and of Stability's own code, and which U-Net it is.

A single file has no configuration. What cannot be read off shapes (heads, levels) comes from a
table of the published networks, in which a file is found by the shapes that tell them apart.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from triptych.models.latent_unet import LatentUNetConfig
from triptych.weights.keymap import Rule, rename, under
from triptych.weights.latent_unet import transformer
from triptych.weights.unet import layer

PREFIX = "model.diffusion_model."
"""Where the U-Net stands in a single file."""
EMA_PREFIX = "model_ema."
"""Where its average stands, each name without its dots."""

RESIDUAL = [
    *layer("in_layers.0", "norm1"),
    *layer("in_layers.2", "conv1"),
    *layer("emb_layers.1", "feature_proj"),
    *layer("out_layers.0", "norm2"),
    *layer("out_layers.3", "conv2"),
    *layer("skip_connection", "shortcut"),
]


def ldm_rules(config: LatentUNetConfig) -> list[Rule]:
    """The names under `model.diffusion_model.`, where all blocks of a way are counted through."""
    inside = transformer(config)
    rules = [
        *layer("time_embed.0", "time.up"),
        *layer("time_embed.2", "time.down"),
        *layer("label_emb.0.0", "added.up"),
        *layer("label_emb.0.2", "added.down"),
        rename("label_emb.weight", "label.weight"),
        *layer("input_blocks.0.0", "conv_in"),
        *under(RESIDUAL, "middle_block.0.", "middle.first."),
        *under(inside, "middle_block.1.", "middle.transformer."),
        *under(RESIDUAL, "middle_block.2.", "middle.second."),
        *layer("out.0", "norm_out"),
        *layer("out.2", "conv_out"),
    ]
    count = config.blocks + 1
    last = len(config.widths) - 1
    for level in range(last + 1):
        for block in range(config.blocks):
            theirs = f"input_blocks.{1 + level * count + block}"
            rules += under(RESIDUAL, f"{theirs}.0.", f"down.{level}.blocks.{block}.residual.")
            if config.transformers[level]:
                rules += under(inside, f"{theirs}.1.", f"down.{level}.blocks.{block}.transformer.")
        if level < last:
            theirs = f"input_blocks.{(level + 1) * count}.0.op"
            rules += layer(theirs, f"down.{level}.downsample.conv")
    for step, depth in enumerate(reversed(config.transformers)):
        for block in range(count):
            theirs = f"output_blocks.{step * count + block}"
            rules += under(RESIDUAL, f"{theirs}.0.", f"up.{step}.blocks.{block}.residual.")
            if depth:
                rules += under(inside, f"{theirs}.1.", f"up.{step}.blocks.{block}.transformer.")
        if step < last:
            theirs = f"output_blocks.{step * count + count - 1}.{2 if depth else 1}.conv"
            rules += layer(theirs, f"up.{step}.upsample.conv")
    return rules


class Network(NamedTuple):
    """A published U-Net."""

    name: str
    config: LatentUNetConfig


class Marks(NamedTuple):
    """The shapes that tell published networks apart."""

    width: int
    context: int
    added: int
    labels: int


LINEAR = LatentUNetConfig(heads=(5, 10, 20, 20), context=1024, projections="linear")
BASE = replace(
    LINEAR,
    widths=(320, 640, 1280),
    transformers=(0, 2, 10),
    middle=10,
    heads=(5, 10, 20),
    context=2048,
    added=1280 + 6 * 256,
)
NETWORKS = {
    Marks(320, 768, 0, 0): Network("Stable Diffusion 1.x", LatentUNetConfig()),
    Marks(320, 1024, 0, 0): Network("Stable Diffusion 2.x", LINEAR),
    Marks(320, 2048, 2816, 0): Network("Stable Diffusion XL", BASE),
    Marks(384, 1280, 2560, 0): Network(
        "Stable Diffusion XL refiner",
        replace(
            LINEAR,
            widths=(384, 768, 1536, 1536),
            transformers=(0, 4, 4, 0),
            middle=4,
            heads=(6, 12, 24, 24),
            context=1280,
            added=1280 + 5 * 256,
        ),
    ),
    Marks(256, 1024, 0, 1000): Network(
        "Stable Diffusion upscaler (x4)",
        replace(
            LINEAR,
            in_channels=7,
            widths=(256, 512, 512, 1024),
            transformers=(0, 1, 1, 1),
            heads=(8, 8, 8, 8),
            only_context=(0, 1, 2),
            labels=1000,
        ),
    ),
}
STRANGERS = {  # a part of a name that only this family has
    "joint_blocks.0.": "Stable Diffusion 3",
    "double_blocks.0.": "FLUX",
    "double_stream_modulation": "FLUX.2",
    "clip_txt_pooled_mapper.": "Stable Cascade",
    "effnet_mapper.": "Stable Cascade",
    "time_stack.": "Stable Video Diffusion",
    "time_mixer.": "Stable Video Diffusion",
    "input_hint_block.": "a ControlNet",
}


def tensors(state: Mapping[str, Tensor], *, average: bool = False) -> dict[str, Tensor]:
    """The U-Net's tensors of a single file, without their prefix.

    `average` takes the average of the weights over training, which some files carry beside the
    weights that training ended with.

    Raises:
        ValueError: the file has no U-Net, or no average; says what it has instead.
    """
    if stranger := next((kind for part, kind in STRANGERS.items() if _has(state, part)), None):
        raise ValueError(f"the file is {stranger}, no U-Net of Stable Diffusion 1.x, 2.x or XL")
    names = [name for name in state if name.startswith(PREFIX)]
    bare = "input_blocks.0.0.weight" in state
    if not names and not bare:
        raise ValueError(f"the file has no U-Net: no name begins with {PREFIX}")
    if not average:
        return dict(state) if bare else {name.removeprefix(PREFIX): state[name] for name in names}
    averaged = {name: EMA_PREFIX + name.removeprefix("model.").replace(".", "") for name in names}
    if missing := [name for name in averaged.values() if name not in state]:
        raise ValueError(
            f"the file has no average of the U-Net's weights ({len(missing)} of {len(names)} "
            "tensors are missing, such as "
            f"{missing[0] if missing else PREFIX}): take the weights themselves"
        )
    return {name.removeprefix(PREFIX): state[key] for name, key in averaged.items()}


def identify(state: Mapping[str, Tensor]) -> Network:
    """Which published U-Net tensors under LDM's names are; what `tensors` gives.

    Inpainting and depth forms differ from their family in input channels, which are the file's.

    Raises:
        ValueError: they are none of the table, with the shapes that were found.
    """
    try:
        first, head = state["input_blocks.0.0.weight"], state["out.2.weight"]
        middle = state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    except KeyError as error:
        raise ValueError(
            f"there is no {error.args[0]}: these are not the names of a latent diffusion U-Net "
            "with a text as its context"
        ) from error
    added, label = state.get("label_emb.0.0.weight"), state.get("label_emb.weight")
    marks = Marks(
        width=first.shape[0],
        context=middle.shape[1],
        added=0 if added is None else added.shape[1],
        labels=0 if label is None else label.shape[0],
    )
    if marks not in NETWORKS:
        known = ", ".join(network.name for network in NETWORKS.values())
        raise ValueError(
            f"a U-Net of width {marks.width}, a context of {marks.context}, {marks.added} added "
            f"numbers and {marks.labels} labels is none of {known}"
        )
    name, config = NETWORKS[marks]
    config = replace(config, in_channels=first.shape[1], out_channels=head.shape[0])
    return Network(name, config)


def _has(state: Mapping[str, Tensor], part: str) -> bool:
    return any(part in name for name in state)

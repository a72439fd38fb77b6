"""The published mask codes: one `.npz` file."""

import torch

from triptych.config import errors_about
from triptych.systems.mask_codes import published
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig
from triptych.weights.keymap import fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint has a table of mask codes."""
    return layout.form == "big_vision" and published.TABLE in layout.open().header.shapes


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """An `.npz` file with the names of big_vision's `vae-oid.npz`.

    Raises:
        ValueError: it is damaged, or arrays are missing or do not fit together.
    """
    with errors_about(layout.path):
        _, config = read_config(layout)
        model = skeleton(lambda: MaskCodes(config))
        fill(model, published.convert(layout.open().read(dtype)))
    return Published("mask-codes", config, model)


def read_config(layout: Layout) -> tuple[str, MaskCodesConfig]:
    """The kind of a checkpoint and its configuration."""
    return "mask-codes", published.read_config(layout.open().header.shapes)

"""The published file of mask codes, `vae-oid.npz` of big_vision: names of a PyTorch module."""

from collections.abc import Mapping

from torch import Tensor

from triptych.systems.mask_codes.model import MaskCodesConfig

TABLE = "_vq_vae._embedding"
"""The table of codes there; what else is under `_vq_vae` are averages that only training needs."""


def read_config(shapes: Mapping[str, tuple[int, ...]]) -> MaskCodesConfig:
    """The configuration from the shapes of the arrays.

    Raises:
        ValueError: an array is missing, or has another number of dimensions.
    """
    names = [f"encoder.{place}.weight" for place in (0, 2, 4, 6)]
    for name in (*names, "decoder.0.weight", TABLE):
        if name not in shapes or len(shapes[name]) != (2 if name == TABLE else 4):
            raise ValueError(f"it has no {name} of mask codes, or one of another shape")
    return MaskCodesConfig(
        down=tuple(shapes[name][0] for name in names),
        width=shapes["decoder.0.weight"][0],
        code_width=shapes[TABLE][1],
    )


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays under our names."""
    kept = {name: x for name, x in state.items() if not name.startswith("_vq_vae.")}
    return {**kept, "codes": state[TABLE]}

"""Published PaliGemma checkpoints: folders of transformers, `.npz` files of big_vision."""

import torch
from torch import Tensor

from triptych import runtime
from triptych.config import errors_about, read_object, settings_of_others
from triptych.systems.gemma.pack import finish, pack_state
from triptych.systems.paligemma import big_vision, published
from triptych.systems.paligemma.model import PaliGemma, PaliGemmaConfig
from triptych.text.language import open_language_tokenizer
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint is a PaliGemma."""
    if layout.form == "big_vision":
        return big_vision.TABLE in map(big_vision.plain, layout.open().header.shapes)
    return layout.form == "transformers" and layout.declared == "paligemma"


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """A folder of transformers, of version 4 or 5, with any number of shards, or an `.npz` file of
    big_vision, whose vocabulary is the `tokenizer.json` beside it.

    Raises:
        ValueError: the precision is float16, or the files are of another model, damaged or do not
            fit together.
    """
    runtime.refuse_float16(dtype)
    _, config = read_config(layout)
    with errors_about(layout.path):
        model = skeleton(lambda: PaliGemma(config))
        state = layout.open().read_mapped(dtype)
        if layout.form == "big_vision":
            state = big_vision.convert(state)
            vocabulary = layout.path.parent / "tokenizer.json"
            found = vocabulary if vocabulary.is_file() else None
        else:
            state = convert(published.rename_older(state), published.rules(config))
            found = layout.tokenizer[0] if layout.tokenizer else None
        state = _cut(state)
        if reading.bits:
            state = pack_state(model.text, state, reading.bits, "text.")
        fill(model, state)
        if reading.bits:
            finish(model.text)
        tokenizer = open_language_tokenizer(found) if found else None
    return Published(
        "paligemma", config, model, transform=transform(config.size), language=tokenizer
    )


def read_config(layout: Layout) -> tuple[str, PaliGemmaConfig]:
    """The kind of a checkpoint and its configuration.

    Raises:
        BadFile: the configuration is damaged, or one that is not supported.
    """
    if layout.form == "big_vision":
        with errors_about(layout.path):
            return "paligemma", big_vision.read_config(layout.open().header.shapes)
    assert layout.config is not None
    with settings_of_others(layout.config):
        return "paligemma", published.from_transformers(read_object(layout.config))


def transform(size: int) -> ImageTransform:
    """Pictures are stretched to a square and not cropped, with values from -1 to 1."""
    return ImageTransform(size, HALF, HALF, "squash", "bicubic", crop=False)


def _cut(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the spare rows of the vocabulary."""
    table = state.get("text.token.weight")
    if table is not None and len(table) == published.TEXT + 64:
        state["text.token.weight"] = table[: published.TEXT]
    return state

"""Folders of PaLI-3 in the layout that `export.py` writes: a T5 of transformers with its eye."""

from dataclasses import replace

import torch

from triptych import runtime
from triptych.config import errors_about, read_object, settings_of_others
from triptych.systems.pali.model import Pali, PaliConfig
from triptych.systems.pali.published import PROJECTOR, VISION, from_transformers, rules
from triptych.systems.paligemma.load_published import transform
from triptych.systems.paligemma.published import EYE, read_eye
from triptych.text.language import open_language_tokenizer
from triptych.weights.files.weight_file import open_weights
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import Layout, layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint is a T5 of transformers."""
    return layout.form == "transformers" and layout.declared == "t5"


def load_published(
    found: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """A T5 of transformers, in any number of shards, with its eye and projector beside it.

    Raises:
        ValueError: the precision is float16, the eye is missing, or the files are damaged or do not
            fit together.
    """
    runtime.refuse_float16(dtype)
    _, config = read_config(found)
    with errors_about(found.path):
        model = skeleton(lambda: Pali(config))
        words = convert(found.open().read_mapped(dtype), rules(config.text))
        state = {f"text.{name}": x for name, x in words.items()}
        state |= convert(layout(found.path / VISION).open().read_mapped(dtype), EYE)
        between = open_weights(found.path / PROJECTOR).read_mapped(dtype)
        fill(model, state | {f"projector.{name}": x for name, x in between.items()})
        tokenizer = open_language_tokenizer(found.tokenizer[0]) if found.tokenizer else None
    ready = transform(config.size)
    return Published("pali", config, model, transform=ready, language=tokenizer)


def read_config(found: Layout) -> tuple[str, PaliConfig]:
    """The kind of a checkpoint and its configuration.

    Raises:
        BadFile: the configuration is damaged, or one that is not supported.
        ValueError: there is no eye.
    """
    assert found.config is not None
    eye = found.path / VISION / "config.json"
    if not eye.is_file():
        raise ValueError(
            f"{found.path} is a T5, which reads text only: a PaLI-3 has its eye in the folder "
            f"{VISION} and {PROJECTOR} beside it"
        )
    with settings_of_others(eye):
        image = read_eye(read_object(eye))
    with settings_of_others(found.config):
        stored = read_object(found.config)
        text = from_transformers(stored)
        return "pali", PaliConfig(image, replace(text, context=stored.get("n_positions", 512)))

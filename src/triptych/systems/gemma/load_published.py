"""Published Gemma checkpoints: folders of transformers, and GGUF files."""

from typing import Any

import torch
from torch import Tensor

from triptych import runtime
from triptych.config import errors_about, read_object, settings_of_others
from triptych.systems.gemma import gguf, published
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.gemma.pack import finish, pack, pack_state
from triptych.text.language import LanguageTokenizer, open_language_tokenizer
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint is a Gemma."""
    if layout.form == "gguf":
        return True  # what else is in one is said by `gguf.read_config`
    return layout.form == "transformers" and layout.declared in published.KINDS


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """A folder of transformers, with any number of shards, or a GGUF file.

    Raises:
        ValueError: the precision is float16, or the files are of another model, damaged or do not
            fit together.
    """
    runtime.refuse_float16(dtype)
    notes: tuple[str, ...] = ()
    with errors_about(layout.path):
        if layout.form == "gguf":
            config, notes = gguf.read_config(layout.open().gguf)
            rules = gguf.rules(config)
        else:
            _, config = read_config(layout)
            rules = published.rules(config)
        model = skeleton(lambda: Gemma(config))
        if layout.form == "gguf" and reading.bits:
            norms, matrices = gguf.read_packed(layout.open().gguf, config)
            pack(model, matrices, reading.bits)
            fill(model, norms)
            finish(model)
            return Published("gemma", config, model, notes=notes, language=_open_tokenizer(layout))
        state = layout.open().read_mapped(None if reading.bits else dtype)
        if layout.declared == "gemma3" and layout.form != "gguf":
            state, more = _language_part(state)
            notes += more
        state = convert(state, rules)
        if layout.form != "gguf" and len(state.get("token.weight", ())) == published.TEXT + 64:
            state["token.weight"] = state["token.weight"][: published.TEXT]
        if reading.bits:
            state = pack_state(model, state, reading.bits)
        fill(model, state)
        if reading.bits:
            finish(model)
        tokenizer = _open_tokenizer(layout)
    return Published("gemma", config, model, notes=notes, language=tokenizer)


def read_config(layout: Layout) -> tuple[str, GemmaConfig]:
    """The kind of a checkpoint and its configuration.

    Raises:
        BadFile: the configuration is damaged, or one that is not supported.
    """
    if layout.config is None:
        with errors_about(layout.path):
            return "gemma", gguf.read_config(layout.open().gguf)[0]
    with settings_of_others(layout.config):
        return "gemma", published.from_transformers(read_object(layout.config))


def _language_part(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the language model beside a picture part, under the names of one alone."""
    kept: dict[str, Any] = {}
    left = 0
    for name, tensor in state.items():
        prefix = next((p for p in published.PREFIXES if name.startswith(p)), None)
        if prefix is not None:
            kept[f"model.{name.removeprefix(prefix)}"] = tensor
        elif any(part in name.split(".") for part in published.PICTURES):
            left += 1
        elif name.endswith("lm_head.weight"):
            kept["lm_head.weight"] = tensor
        else:
            kept[name] = tensor
    note = "its picture part is not loaded: it reads text only here"
    return kept, (note,) if left else ()


def _open_tokenizer(layout: Layout) -> LanguageTokenizer | None:
    if layout.form == "gguf":
        return gguf.read_tokenizer(layout.open().gguf)
    return open_language_tokenizer(layout.tokenizer[0]) if layout.tokenizer else None

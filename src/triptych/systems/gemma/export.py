"""A Gemma written in the layout of transformers."""

from pathlib import Path

from triptych.config import write_json
from triptych.systems.gemma.published import rules, to_transformers
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.keymap import export
from triptych.weights.loaded import Loaded, Writer


def write_transformers(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    """Configuration, weights in the type that they have, and tokenizer."""
    write_json(folder / "config.json", to_transformers(loaded.config))
    tensors = export(dict(loaded.model.state_dict()), rules(loaded.config))
    # the reader of the other library asks which framework the tensors are of
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    if loaded.language is not None:
        loaded.language.save(folder)
    return ()


WRITERS: dict[str, Writer] = {"transformers": write_transformers}

"""A PaLI-3 written as a T5 of transformers with its eye beside it."""

from pathlib import Path

from triptych.config import write_json
from triptych.systems.pali.model import Pali
from triptych.systems.pali.published import PROJECTOR, VISION, rules, to_transformers
from triptych.systems.paligemma.export import write_preprocessing
from triptych.systems.paligemma.published import EYE, write_eye
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.keymap import export
from triptych.weights.loaded import Loaded, Writer

FOR_TORCH = {"format": "pt"}
"""The reader of the other library asks which framework the tensors are of."""


def write_transformers(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    """Configurations, weights in the type that they have, tokenizer and preprocessing.

    Raises:
        ValueError: transformers has no such eye.
    """
    assert isinstance(loaded.model, Pali)
    config, state = loaded.model.config, dict(loaded.model.state_dict())
    (folder / VISION).mkdir()
    write_json(folder / VISION / "config.json", write_eye(config.image))
    write_json(folder / "config.json", to_transformers(config.text))
    text = {name.removeprefix("text."): x for name, x in state.items() if name.startswith("text.")}
    image = {name: x for name, x in state.items() if name.startswith("image.")}
    projector = {
        name.removeprefix("projector."): x
        for name, x in state.items()
        if name.startswith("projector.")
    }
    weights = folder / "model.safetensors"
    write_safetensors(weights, export(text, rules(config.text)), FOR_TORCH)
    write_safetensors(folder / VISION / weights.name, export(image, EYE), FOR_TORCH)
    write_safetensors(folder / PROJECTOR, projector)
    write_preprocessing(folder, config.size, config.places)
    if loaded.language is not None:
        loaded.language.save(folder)
    notes = ["transformers has no PaLI-3: the folder is a T5 there, and its eye a SigLIP in vision"]
    if config.masks is not None:
        notes.append("its mask codes are left out")
    return tuple(notes)


WRITERS: dict[str, Writer] = {"transformers": write_transformers}

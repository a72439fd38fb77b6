"""A PaliGemma written in the layout of transformers."""

from pathlib import Path

from triptych.config import write_json
from triptych.systems.paligemma.model import PaliGemma
from triptych.systems.paligemma.published import rules, to_transformers
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.keymap import export
from triptych.weights.loaded import Loaded, Writer


def write_transformers(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    """Configuration, weights in the type that they have, tokenizer and preprocessing.

    Raises:
        ValueError: transformers has no such model.
    """
    assert isinstance(loaded.model, PaliGemma)
    config = loaded.model.config
    write_json(folder / "config.json", to_transformers(config))
    state = loaded.model.state_dict()
    kept = {name: x for name, x in state.items() if not name.startswith("masks.")}
    # the reader of the other library asks which framework the tensors are of
    write_safetensors(folder / "model.safetensors", export(kept, rules(config)), {"format": "pt"})
    write_preprocessing(folder, config.size, config.places)
    if loaded.language is not None:
        loaded.language.save(folder)
    left = len(kept) < len(state)
    return ("its mask codes are left out: transformers draws no masks",) if left else ()


def write_preprocessing(folder: Path, size: int, places: int) -> None:
    """How pictures are prepared: stretched to a square, with values from -1 to 1."""
    preprocessing = {
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": places,
        "size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write_json(folder / "preprocessor_config.json", preprocessing)


WRITERS: dict[str, Writer] = {"transformers": write_transformers}

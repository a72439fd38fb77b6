"""Textual inversion while pictures are sampled: words with learned vectors (arXiv:2208.01618).

A prompt names a file in the folder `embeddings` by its name without the ending, like any other
word, with a weight if needed: `(my-style:1.2)`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from triptych.systems.stable_diffusion.adapters.textual_inversion import read_word
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.text.tokenizer import Tokenizer

FOLDER = Path("embeddings")
ENDINGS = (".safetensors", ".pt", ".bin")


@contextmanager
def learned_words(
    model: StableDiffusion, tokenizers: Sequence[Tokenizer], prompts: Sequence[str]
) -> Iterator[tuple[tuple[Tokenizer, ...], tuple[str, ...]]]:
    """Add the learned words in these prompts to the model's text towers, and remove them on exit.

    Yields tokenizers that have these words, and a note about each.

    Raises:
        ValueError: a file is not an embedding, or for another family of models.
    """
    files = {name: path for name, path in _find_files().items() if _is_named(name, prompts)}
    widths = [tower.text.width for tower in model.config.text]
    words = {name: read_word(path, widths) for name, path in files.items()}
    counts = {name: len(vectors[0]) for name, vectors in words.items()}
    weights = [tower.get_parameter("token.weight") for tower in model.text]
    originals = [weight.data for weight in weights]
    try:
        if words:
            for number, (weight, tokenizer) in enumerate(zip(weights, tokenizers, strict=True)):
                embeddings = weight.data[: tokenizer.vocabulary]  # further rows belong to no token
                added = [vectors[number].to(embeddings) for vectors in words.values()]
                weight.data = torch.cat([embeddings, *added])
        notes = (
            f"{files[name].name}: {name!r} is {count} vectors" for name, count in counts.items()
        )
        yield tuple(tokenizer.with_words(counts) for tokenizer in tokenizers), tuple(notes)
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data = original


def _find_files() -> dict[str, Path]:
    if not FOLDER.is_dir():
        return {}
    return {file.stem: file for file in sorted(FOLDER.iterdir()) if file.suffix in ENDINGS}


def _is_named(name: str, prompts: Sequence[str]) -> bool:
    pattern = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    return any(pattern.search(prompt) for prompt in prompts)

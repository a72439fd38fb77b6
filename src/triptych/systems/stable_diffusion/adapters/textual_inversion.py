"""Textual inversion: files of a few learned vectors that stand for a new word (arXiv:2208.01618).

Dimensions: N vectors of the word, D width of a text encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from triptych.weights.files.read import read_weights

ENCODERS = {768: "CLIP ViT-L", 1024: "OpenCLIP ViT-H", 1280: "OpenCLIP ViT-bigG"}
FAMILIES = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
    (768, 1280, 4096): "Stable Diffusion 3",
}
UNNAMED = ("emb_params", "string_to_param.*", "clip_l", "clip_g")
"""Names of tensors that say nothing of the word: it is the file's own name then."""


@dataclass(frozen=True)
class Word:
    """A word that a text encoder did not know, in the vectors that it is trained to be."""

    name: str
    """What stands for it in a prompt."""
    vectors: tuple[Float[Tensor, "N D"], ...]
    """One for each text encoder, in the order asked for."""


def read_word(path: Path, widths: Sequence[int]) -> Word:
    """An embedding file of AUTOMATIC1111's (`.pt`, `.safetensors`) or diffusers' form.

    `widths` are those of the model's text encoders. A file of diffusers says its word, such as
    `<cat-toy>`; of others it is the file's name without its ending.

    Raises:
        ValueError: what is wrong with the file, or which family of models it is for.
    """
    try:
        return parse_word(read_weights(path), widths, path.stem)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"{path}: {message}") from error


def parse_word(tensors: Mapping[str, Tensor], widths: Sequence[int], name: str) -> Word:
    """Tensors of an embedding file as vectors per text encoder.

    Raises:
        ValueError: they are no embedding, or one for other text encoders.
    """
    # the first programs kept the word's token number too
    found = {key: x for key, x in tensors.items() if not key.startswith("string_to_token")}
    rows: dict[int, Tensor] = {}
    for key, tensor in found.items():
        vectors = tensor[None] if tensor.ndim == 1 else tensor
        if vectors.ndim != 2 or not vectors.is_floating_point() or len(found) > 3:
            raise ValueError(
                f"{key} is of shape {tuple(tensor.shape)} among {len(found)} tensors: the file is "
                "no textual inversion, which has one to three of (vectors, width)"
            )
        if vectors.shape[1] in rows:
            raise ValueError(f"it holds two words for an encoder of width {vectors.shape[1]}")
        rows[vectors.shape[1]] = vectors
    if sorted(rows) != sorted(widths):
        raise ValueError(
            f"it is a word for {_family(list(rows))}, and this model is {_family(widths)}"
        )
    if len({len(vectors) for vectors in rows.values()}) > 1:
        counts = ", ".join(str(len(vectors)) for vectors in rows.values())
        raise ValueError(f"its encoders have different numbers of vectors: {counts}")
    spoken = next((key for key in found if key not in UNNAMED), name)
    return Word(spoken, tuple(rows[width] for width in widths))


def _family(widths: Sequence[int]) -> str:
    """Whom vectors of these widths are for."""
    known = FAMILIES.get(tuple(sorted(widths)))
    encoders = " and ".join(ENCODERS.get(w, f"an encoder of width {w}") for w in sorted(widths))
    return f"{known} ({encoders})" if known else encoders or "nothing"

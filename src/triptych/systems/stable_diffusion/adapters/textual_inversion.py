"""Files of textual inversion: the learned vectors of a new word (arXiv:2208.01618).

Dimensions: N vectors of the word, D width of a text encoder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from triptych.config import errors_about
from triptych.weights.files.weight_file import read_weights

ENCODERS = {768: "CLIP ViT-L", 1024: "OpenCLIP ViT-H", 1280: "OpenCLIP ViT-bigG"}
FAMILIES = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
    (768, 1280, 4096): "Stable Diffusion 3",
}


def read_word(path: Path, widths: Sequence[int]) -> tuple[Float[Tensor, "N D"], ...]:
    """Read an embedding file in the format of AUTOMATIC1111 (`.pt`, `.safetensors`) or diffusers:
    the vectors of a word for each of the model's text towers, which have these `widths`.

    Raises:
        ValueError: the file is damaged, or for another family of models, which is named.
    """
    with errors_about(path):
        return parse_word(read_weights(path), widths)


def parse_word(
    tensors: Mapping[str, Tensor], widths: Sequence[int]
) -> tuple[Float[Tensor, "N D"], ...]:
    """Parse the tensors of an embedding file.

    Raises:
        ValueError: they are not an embedding, or one for other text towers.
    """
    # early files also have the token of the word
    embeddings = {key: x for key, x in tensors.items() if not key.startswith("string_to_token")}
    rows: dict[int, Tensor] = {}
    for key, tensor in embeddings.items():
        vectors = tensor[None] if tensor.ndim == 1 else tensor
        if vectors.ndim != 2 or not vectors.is_floating_point() or len(embeddings) > 3:
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)}, among {len(embeddings)} tensors: the file "
                "is not a textual inversion, which has one to three tensors (vectors, width)"
            )
        if vectors.shape[1] in rows:
            raise ValueError(f"it contains two words for a text tower of width {vectors.shape[1]}")
        rows[vectors.shape[1]] = vectors
    if sorted(rows) != sorted(widths):
        raise ValueError(
            f"it is a word for {_family(list(rows))}, but this model is {_family(widths)}"
        )
    if len({len(vectors) for vectors in rows.values()}) > 1:
        counts = ", ".join(str(len(vectors)) for vectors in rows.values())
        raise ValueError(f"its text towers have different numbers of vectors: {counts}")
    return tuple(rows[width] for width in widths)


def _family(widths: Sequence[int]) -> str:
    """The family of models whose text towers have these widths."""
    known = FAMILIES.get(tuple(sorted(widths)))
    encoders = " and ".join(ENCODERS.get(w, f"a text tower of width {w}") for w in sorted(widths))
    return f"{known} ({encoders})" if known else encoders or "nothing"

"""Conditions of pictures as vectors.

Dimensions: B pictures, N numbers of a condition.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def condition_vector(
    kind: str, size: int, condition: Tensor | None, batch: int, like: Tensor
) -> Float[Tensor, "B N"]:
    """A condition as one row of numbers per picture, with the type and device of `like`.

    `kind` is `none` (condition None, no columns), `label` (int64 (B,), one-hot here), `attributes`
    or `vector` (float (B, N), as they are); `size` is N.

    Raises:
        ValueError: the condition is not of that kind or shape.
    """
    if kind == "none":
        if condition is not None:
            raise ValueError("this model is unconditional: its condition must be None")
        return like.new_zeros(batch, 0)
    if condition is None:
        raise ValueError(f"this model is conditioned on {kind}: give a condition")
    expected = (batch,) if kind == "label" else (batch, size)
    if condition.shape != expected:
        raise ValueError(f"{kind} must have shape {expected}, not {tuple(condition.shape)}")
    return (F.one_hot(condition, size) if kind == "label" else condition).to(like)

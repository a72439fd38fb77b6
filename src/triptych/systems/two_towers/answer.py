"""Embeddings as plain values."""

from typing import Any

from triptych.system import Answer
from triptych.systems.two_towers.pipeline import Vector, Vectors


def to_answer(item: Vectors, model: str) -> Answer:
    """Texts, then pictures, each with its vector or the reason why it has none."""
    return Answer({"model": model, "rows": [describe_vector(row) for row in item.rows]})


def describe_vector(row: Vector) -> dict[str, Any]:
    """One input and its vector."""
    values: dict[str, Any] = {"kind": row.kind, "input": row.input}
    if row.embedding is not None:
        values["embedding"] = row.embedding.tolist()
    if row.cut:
        values["cut"] = row.cut
    if row.error:
        values["error"] = row.error
    return values

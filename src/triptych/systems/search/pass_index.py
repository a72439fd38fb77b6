"""The vectors of a pass, `triptych embed --batch INPUT --out DIR`, as an index that is complete."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from triptych.config import BadFile
from triptych.data.disk.parquet import require_pyarrow
from triptych.data.disk.parts import PLAN, is_complete, read_manifest, read_plan
from triptych.systems.search.index import Index


def is_pass(folder: Path) -> bool:
    """Whether a folder is the result of a pass."""
    return (folder / PLAN).is_file()


def open_pass(folder: Path, place: Path, model: str, width: int) -> Index:
    """The pictures of a pass that have a vector. `model` is the digest of the model that searches,
    `place` a folder for what a search keeps.

    Raises:
        ValueError: the pass made no vectors, another model made them, or a file is damaged.
    """
    plan = read_plan(folder)
    if plan["request"].get("kind") != "Embed":
        raise ValueError(f"{folder} is no result of `triptych embed --batch`: it has no vectors")
    done = [each for each in read_manifest(folder) if is_complete(folder, each)]
    if any(each.model != model for each in done):
        named = plan["request"].get("model")
        raise ValueError(
            f"the vectors in {folder} were made by another model ({named}), and vectors of "
            f"different models cannot be compared: search with --model {named}"
        )
    names: list[str] = []
    blocks: list[Tensor] = []
    skipped: dict[str, str] = {}
    state = hashlib.sha256()
    for each in sorted(done, key=lambda each: each.part):
        state.update(each.sha256.encode())
        keys, vectors, bad = _read(folder / each.file, width)
        names += keys
        blocks.append(vectors)
        skipped |= bad
    source = str(plan["settings"].get("batch", ""))
    paths = {name: f"{source}/{name}" for name in names} if Path(source).is_dir() else {}
    digest = state.hexdigest()[:16]
    return Index(folder, place, tuple(names), tuple(blocks), skipped, digest, paths)


def _read(file: Path, width: int) -> tuple[list[str], Tensor, dict[str, str]]:
    """The keys of a part that have a vector, the vectors, and why others have none."""
    pyarrow = require_pyarrow()
    try:
        table = pyarrow.parquet.read_table(file, columns=["key", "embedding", "error"])
        there = table.filter(pyarrow.compute.is_valid(table["embedding"]))
        column = there["embedding"].combine_chunks()
        numbers = column.flatten().to_numpy(zero_copy_only=False)
        vectors = torch.tensor(numbers, dtype=torch.float32).reshape(len(there), width)
    except (OSError, pyarrow.ArrowException, RuntimeError) as error:
        raise BadFile(file, "damaged, or no vectors of this model: make the pass again") from error
    bad = table.filter(pyarrow.compute.is_null(table["embedding"]))
    reasons = zip(bad["key"].to_pylist(), bad["error"].to_pylist(), strict=True)
    return there["key"].to_pylist(), vectors, {key: why for key, why in reasons if why}

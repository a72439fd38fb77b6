"""Numbered files of rows: complete or missing."""

from pathlib import Path

import torch

from triptych.weights.files.store import Store


def test_files_are_read_as_written_and_a_damaged_one_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path, "rows-", "notes")
    rows = torch.arange(6.0).reshape(3, 2)
    for number in (3, 0):
        store.write(number, {"rows": rows + number}, ["a", {"b": number}])
    (tmp_path / "rows-1.safetensors").touch()
    (tmp_path / "other-000001.safetensors").touch()
    assert store.numbers() == [0, 3] and store.read(1) is None
    read = store.read(3)
    assert read is not None and read.notes == ["a", {"b": 3}] and list(read.tensors) == ["rows"]
    assert torch.equal(read.tensors["rows"], rows + 3)
    path = store.path(0)
    path.write_bytes(path.read_bytes()[:-5])
    assert store.read(0) is None and store.numbers() == [0, 3]
    Store(tmp_path, "rows-", "comments").write(3, {"rows": rows}, [])
    assert store.read(3) is None

"""Every container is told by its content, read whole, and refused with a sentence."""

import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from triptych.config import BadFile
from triptych.doctor import examine
from triptych.systems.stable_diffusion.adapters.lora_files import read_lora
from triptych.systems.stable_diffusion.adapters.textual_inversion import read_word
from triptych.weights.files import safetensors, torch_archive
from triptych.weights.files import shards as shards_module
from triptych.weights.files.pickle_reader import read_pickle
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.shapes import MAX_DIMENSIONS, MAX_VALUES, read_shape
from triptych.weights.files.shards import missing_shards
from triptych.weights.files.weight_file import open_weights, read_safetensors, read_weights


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c.0": torch.randn(2).bfloat16()}


def find_fault(path: Path) -> str:
    """Why a file cannot be read; empty where it can."""
    try:
        read_weights(path)
    except BadFile as error:
        assert error.path == path and str(error) == f"{path}: {error.reason}"
        return error.reason
    return ""


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items()
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model", "weights.npz"])
def test_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    save_file(state(), tmp_path / name)
    assert open_weights(tmp_path / name).kind == "safetensors"
    assert equal(read_weights(tmp_path / name), state())
    torch.save(state(), tmp_path / name)
    assert open_weights(tmp_path / name).kind == "torch"
    assert equal(read_weights(tmp_path / name), state())


def sharded(folder: Path, kind: str = "safetensors") -> Path:
    tensors, files = state(), {}
    for i, name in enumerate(tensors):
        files[name] = f"model-{i + 1:05d}-of-00003.{kind}"
        if kind == "bin":
            torch.save({name: tensors[name]}, folder / files[name])
        else:
            save_file({name: tensors[name]}, folder / files[name])
    index = folder / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_put_together(tmp_path: Path, kind: str) -> None:
    index = sharded(tmp_path, kind)
    assert open_weights(index).kind == "shards"
    assert equal(read_weights(index), state())


def test_every_fault_of_shards_names_the_shard(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    second = tmp_path / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=r"shard model-00002-of-00003.safetensors has \d+ bytes"):
        read_weights(index)
    save_file({"other": torch.zeros(1)}, second)
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors lacks b"):
        read_weights(index)
    second.unlink()
    assert missing_shards(index) == [second.name]
    with pytest.raises(ValueError, match="lacks 1 of its 3 shards: model-00002-of-00003"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match="no file beside it"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match="no shards"):
        read_weights(index)


def test_an_index_may_not_name_an_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(ValueError, match="index"):
        read_weights(index)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_as_numpy_reads_it(tmp_path: Path, save) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "params/img/embedding/kernel": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "params/t": np.array(2.5, np.float32),
        "turned": np.asfortranarray(rng.normal(size=(3, 5))),
        "big": rng.normal(size=7).astype(">f4"),
        "half": rng.normal(size=4).astype(np.float16),
        "whole": rng.integers(0, 9, (2, 2)),
        "none": np.zeros((0, 3), np.float32),
        "flag": np.array([True, False]),
    }
    path = tmp_path / "siglip.npz"
    save(path, **arrays)
    assert open_weights(path).kind == "npz"
    found = read_weights(path)
    with np.load(path) as theirs:
        assert sorted(found) == sorted(theirs.files)
        for name, tensor in found.items():
            assert tensor.shape == theirs[name].shape
            assert np.array_equal(tensor.numpy(), theirs[name])


def test_two_bytes_without_a_type_are_bfloat16(tmp_path: Path) -> None:
    expected = torch.randn(3, 4).bfloat16()
    untyped = expected.view(torch.int16).numpy().view(np.dtype("V2"))
    np.savez(tmp_path / "a.npz", kernel=untyped)
    found = read_weights(tmp_path / "a.npz")["kernel"]
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([{}, []], dtype=object), "unpickling them would execute code"),
        (np.array(["a", "b"]), "<U1, which is no tensor"),
        (np.zeros(2, [("x", "f4")]), "no tensor"),
        (np.zeros(2, "V3"), "no tensor"),
        (np.zeros(2, "M8[s]"), "no tensor"),
        (np.zeros(2, np.longdouble), "no type for"),
    ],
)
def test_arrays_that_are_no_tensors(tmp_path: Path, array, words: str) -> None:
    np.savez(tmp_path / "a.npz", bad=array)
    with pytest.raises(ValueError, match=f"array bad.npy: .*{words}"):
        read_weights(tmp_path / "a.npz")


def test_an_npz_that_lies_about_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for shape in ("(99999999999999,)", "(3,)", "(-1,)", "(4, -1)"):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
        body = b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + bytes(16)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.npy", body)
        with pytest.raises(ValueError, match=r"array a\.npy: (has|holds)"):
            read_weights(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(1 << 16))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24  # the announced size in the directory
    data[place : place + 4] = (3 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"announces 3,221,225,472 unpacked bytes"):
        read_weights(path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605247071\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "pointer to a file of 605,247,071 bytes.*git lfs pull"),
        (b"\n <!DOCTYPE html><html>sign in</html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "answer of a server"),
        (b'{"error":"Repository not found"}', "error answer of a server .'Repository not found'"),
        (b'{"model_type": "clip"}', "a JSON file, not weights"),
        (b'{"weight_map": {', "cut short"),
        (b"[1, 2]", "a JSON file, not weights"),
        (b"Invalid username or password.", "a text that says 'Invalid username or password.'"),
        (b"", "is empty: the download broke off"),
        (b"\0" * 4096, "zeros only: the download broke off"),
        (b"PK\x03\x04" + b"\0" * 60, "zip archive whose directory is missing.*cut short"),
        (b"PK\x05\x06" + b"\0" * 18, "without weights"),
        (gzip.compress(b"weights", mtime=0), "packed with gzip.*gunzip"),
        (b"x" * 257 + b"ustar" + b"\0" * 300, "tar archive.*tar xf"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "HDF5"),
        (b"GGUF\x01\0\0\0" + b"\0" * 100, "GGUF file of version 1"),
        (b"\x93NUMPY\x01\0" + b"\0" * 100, "single NumPy array"),
        (b"\x80\x04\x95" + b"\0" * 60, "bare pickle.*never done here"),
        (b"\xff" * 100, "does not begin like"),
        (b"\xff", "has only 1 bytes"),
        ((100).to_bytes(8, "little") + b"{" * 20, "cut short"),
        ((4).to_bytes(8, "little") + b"{]]]", "broken header"),
        ((2).to_bytes(8, "little") + b"[]", "does not begin like"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "does not begin like"),
    ],
)
def test_what_came_instead_of_weights_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{words}"):
        read_weights(path)
    assert re.search(words, find_fault(path)) and str(path) not in find_fault(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "is a folder" in find_fault(tmp_path)
    save_file(state(), tmp_path / "model.safetensors")
    assert find_fault(tmp_path / "modle.safetensors") == (
        "does not exist. Did you mean 'model.safetensors'?"
    )
    assert find_fault(tmp_path / "no" / "where.pt") == "does not exist"
    os.mkfifo(tmp_path / "pipe")
    assert find_fault(tmp_path / "pipe") == "is no file that can be read"


def test_a_truncated_file_is_told_by_its_bytes(tmp_path: Path) -> None:
    safe, npz, legacy, zipped = (tmp_path / n for n in ("a.safetensors", "a.npz", "l.pt", "z.pt"))
    save_file(state(), safe)
    np.savez(npz, a=np.arange(9.0))
    torch.save(state(), legacy, _use_new_zipfile_serialization=False)
    torch.save(state(), zipped)
    for path in (safe, npz, legacy, zipped):
        assert find_fault(path) == ""
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        fault = find_fault(path)
        assert "cut short" in fault and re.search(
            rf"\b{len(whole) - 5:,}|{len(whole) - 5}\b", fault
        )
    assert f"instead of {len(whole):,}" not in find_fault(zipped)  # a zip does not say its length


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_interpreted_once_and_the_tensors_stay_mapped(
    tmp_path: Path, monkeypatch, zipped: bool
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    calls = []

    def count(stream):
        calls.append(stream)
        return read_pickle(stream)

    monkeypatch.setattr(torch_archive, "read_pickle", count)
    file = open_weights(path)
    assert calls == []
    assert file.header.shapes == {name: tuple(x.shape) for name, x in state().items()}
    assert equal(file.read(), state()) and equal(file.read(), state())
    assert file.read(torch.float64, ["b", "c.0"])["c.0"].dtype == torch.float64
    with pytest.raises(BadFile, match="lacks d"):
        file.read(names=["b", "d"])
    assert len(calls) == (1 if zipped else 5)
    tensor = file.read()["b"]
    tensor[0] = 7  # a private copy of the page: neither the file nor another reading changes
    assert equal(file.read(), state()) and equal(read_weights(path), state())


def test_read_safetensors_wants_nothing_else(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"torch.save archive, not safetensors. `triptych weights"):
        read_safetensors(tmp_path / "model.pt")


def test_what_is_written_is_read_also_where_memory_is_shared(tmp_path: Path) -> None:
    whole = torch.randn(4, 4)
    tied = state() | {"whole": whole, "turned": whole.t(), "part": whole[1:3], "tied": whole}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tied, {"format": "pt"})
    assert equal(read_weights(path), tied)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, state())
    with pytest.raises(ValueError, match="complex128"):
        write_safetensors(path, {"x": torch.zeros(1, dtype=torch.complex128)})
    assert equal(read_weights(path), state())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def with_header(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    """A safetensors file with any header."""
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def one(shape: str, offsets: str = "[0, 4]", dtype: str = '"F32"') -> str:
    return f'{{"x": {{"dtype": {dtype}, "shape": {shape}, "data_offsets": {offsets}}}}}'


@pytest.mark.parametrize(
    "header",
    [
        *map(one, ("[Infinity]", "[1e400]", "[NaN]", "[-1]", "[true]", "[1.0]", '["1"]', "1")),
        *map(one, (f"[{2**62}]", f"[0, {2**62}]", f"[{10**20}]", f"[0, {10**20}]")),
        *map(one, ("[2]", "[null]", "{}")),
        *(one("[1]", offsets) for offsets in (
            "[0, Infinity]", "[0, 1e400]", "[NaN, 4]", "[-4, 0]", "[false, 4]", "[4, 0]",
            "[0, 4, 4]", "[0]", "{}", "4", f"[0, {10**20}]", f"[{10**20}, {10**20}]", "[1, 5]",
        )),
        *(f'{{"__metadata__": {notes}, {one("[1]")[1:]}' for notes in (
            "3", "[]", "null", '{"a": 3}', '{"a": null}', '{"a": {"b": "c"}}',
        )),
        one("[1]", dtype="4"), one("[1]", dtype="Infinity"), one("[1]", dtype="[]"),
        one(f"[{'1, ' * 40}1]"),
        "[" * 100_000, '{"x":' * 100_000, "Infinity", "NaN", "[]", "1" * 5000, b'{"\xff": 1}',
        one("[1]")[:-1] + ', "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        one("[1]")[:-1] + ', "y": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}',
    ],
    ids=lambda header: f"{header[:90]!s}",
)  # fmt: skip
def test_no_header_gets_past_its_check(tmp_path: Path, header) -> None:
    path = with_header(tmp_path / "a.safetensors", header, bytes(4))
    assert any(words in find_fault(path) for words in ("Fetch it again", "does not begin like"))
    assert any(finding.fault for finding in examine(path))
    for read in (lambda: read_lora(path, []), lambda: read_word(path, (8,))):
        with pytest.raises(BadFile):
            read()


def test_a_header_holds_at_most_so_many_tensors_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 3)
    monkeypatch.setattr(safetensors, "MAX_HEADER", 800)
    path = tmp_path / "a.safetensors"
    for count, fault in ((3, ""), (4, "names 4 tensors; weights have at most 3")):
        save_file({f"{n}": torch.zeros(1) for n in range(count)}, path)
        assert find_fault(path) == fault
    room = 800 - len(one("[1]"))
    for extra, words in ((0, ""), (1, "its header would have 801 bytes")):
        with_header(path, one("[1]") + " " * (room + extra), bytes(4))
        assert words in find_fault(path) and bool(words) == bool(find_fault(path))


def test_an_index_names_at_most_so_many_tensors(tmp_path: Path, monkeypatch) -> None:
    index = sharded(tmp_path)
    for most, fault in ((3, ""), (2, "names 3 tensors; weights have at most 2")):
        monkeypatch.setattr(shards_module, "MAX_TENSORS", most)
        assert find_fault(index) == fault


def test_an_index_names_files_that_can_be(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    most = shards_module.MAX_NAME
    for name, words in (
        ("x" * most, "lacks 1 of its 1 shards"),
        ("x" * (most + 1), "which is no file beside it"),
        ("x" * 5000, "which is no file beside it"),
        ("a\0b", "which is no file beside it"),
    ):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert words in find_fault(index)
        assert any(finding.fault for finding in examine(index))


def test_a_shape_is_bounded_where_its_numbers_are(tmp_path: Path) -> None:
    most = MAX_VALUES
    assert read_shape([most]) == (most,) and read_shape((0, most)) == (0, most)
    assert read_shape([1] * MAX_DIMENSIONS) == (1,) * MAX_DIMENSIONS
    for shape in ([most + 1], [2, most], [0, most + 1], [1] * (MAX_DIMENSIONS + 1)):
        with pytest.raises(ValueError, match="Fetch it again"):
            read_shape(shape)
    for shape in ("(True, 2)", f"(0, {10**20})", f"(0, {2**62})", f"({2**62},)", "(-1,)"):
        array = b"{'descr': '<f4', 'fortran_order': False, 'shape': %s, }" % shape.encode()
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            head = b"\x93NUMPY\x01\x00" + len(array).to_bytes(2, "little")
            archive.writestr("x.npy", head + array + bytes(8))
        assert find_fault(tmp_path / "a.npz").startswith("array x.npy: has a tensor of the shape")


@settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.sampled_from(["safetensors", "npz", "packed npz", "index"]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_damage_gives_a_sentence_and_never_anything_else(tmp_path: Path, form, flips, cut) -> None:
    path = tmp_path / "damaged"
    if form == "safetensors":
        save_file(state(), path)
    elif form == "index":
        path = sharded(tmp_path)
    else:
        save = np.savez if form == "npz" else np.savez_compressed
        with path.open("wb") as file:
            save(file, a=np.arange(6.0).reshape(2, 3), b=np.ones(3, np.int8))
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(data[: cut % len(data)] if cut is not None else data)
    try:
        found = read_weights(path)
    except ValueError:
        return
    assert sum(t.clone().nbytes for t in found.values()) <= 1 << 20

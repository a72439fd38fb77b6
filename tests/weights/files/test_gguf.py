"""GGUF: blocks against the package `gguf`, and every bound of what a file says of itself."""

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from triptych.config import BadFile
from triptych.weights.files import gguf as module
from triptych.weights.files.gguf import MAX_ALIGNMENT, MAX_KEY, MAX_NAME, read_gguf
from triptych.weights.files.gguf_blocks import AT_ONCE, BLOCKS, unpack
from triptych.weights.files.weight_file import open_weights

HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}
"""Where a block has its factors in float16; elsewhere at its start."""


@pytest.mark.parametrize("form", BLOCKS)
def test_blocks_are_unpacked_as_by_the_package(form):
    """To the bit, of all byte values, over the end of what is unpacked at a time."""
    kind, block = gguf.GGMLQuantizationType[form], BLOCKS[form]
    assert kind.value == block.number
    assert gguf.GGML_QUANT_SIZES[kind] == (block.values, block.bytes)
    rng = np.random.default_rng(0)
    count = 3 if block.values == 256 else AT_ONCE + 3
    data = rng.integers(0, 256, (count, block.bytes), np.uint8)
    if block.values > 1:
        for at in HALVES.get(form, (0,)):
            data[:, at : at + 2] = rng.normal(size=(count, 1)).astype(np.float16).view(np.uint8)
    else:
        data = rng.normal(size=(count, 1)).astype(np.float32).view(np.uint8)[:, 4 - block.bytes :]
        data = np.ascontiguousarray(data)
        if form == "F16":
            data = rng.normal(size=(count, 1)).astype(np.float16).view(np.uint8)
    expected = gguf.dequantize(data.reshape(1, -1), kind)
    found = unpack(torch.from_numpy(data).flatten(), form, (1, count * block.values)).float()
    assert np.array_equal(found.numpy().view(np.int32), expected.view(np.int32))


def test_a_file_of_the_package_is_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    packed = gguf.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_string("some.text", "über")
    writer.add_array("some.words", ["a", "", "ö\nb"])
    writer.add_array("some.numbers", [1.5, -2.0])
    writer.add_bool("some.bool", True)
    writer.add_int64("some.number", -(1 << 40))
    writer.add_custom_alignment(64)
    writer.add_tensor("a.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", rows.numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file()
    writer.write_tensors_to_file(), writer.close()
    file = open_weights(path)
    assert file.kind == "gguf" and file.header.shapes == {"a.weight": (3, 64), "b.weight": (3, 64)}
    assert file.header.notes["some.text"] == "über"
    facts = file.gguf.metadata
    assert facts["some.words"] == [b"a", b"", "ö\nb".encode()]
    assert facts["some.numbers"].tolist() == [1.5, -2.0]
    assert facts["some.bool"] is True and facts["some.number"] == -(1 << 40)
    tensors = file.read()
    assert torch.equal(tensors["b.weight"], rows)
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(tensors["a.weight"], torch.from_numpy(expected))
    assert file.read(torch.bfloat16, ["b.weight"])["b.weight"].equal(rows.bfloat16())


# A file byte by byte, so that each number can be a wrong one.


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: bytes = b"k", kind: int = 4, value: bytes = struct.pack("<I", 7)) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(
    name: bytes = b"t", sides: tuple[int, ...] = (8, 2), kind: int = 0, offset: int = 0,
    dimensions: int | None = None,
) -> bytes:  # fmt: skip
    count = len(sides) if dimensions is None else dimensions
    return (
        text(name)
        + struct.pack(f"<I{len(sides)}Q", count, *sides)
        + struct.pack("<IQ", kind, offset)
    )


def file(
    keys: list[bytes] | None = None, tensors: list[bytes] | None = None, version: int = 3,
    data: int = 64, counts: tuple[int, int] | None = None, alignment: int = 32,
) -> bytes:  # fmt: skip
    keys = [key()] if keys is None else keys
    tensors = [tensor()] if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    head += b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + b"\1" * data


HUGE = 1 << 62
BAD = {
    "nothing after the name": (b"GGUF", "cut short"),
    "version 1": (file(version=1), "version 1; versions 2 and 3"),
    "version 99": (file(version=99), "version 99"),
    "other byte order": (file(version=3 << 24), "big-endian"),
    "many tensors": (file(counts=(HUGE, 1)), "tensors, for which it has no room"),
    "many keys": (file(counts=(1, HUGE)), "keys, for which it has no room"),
    "more keys than there are": (file(counts=(1, 2)), "key|cut short|type|room"),
    "an empty key": (file([key(b"")]), "twice, or an empty one"),
    "a key twice": (file([key(), key()]), "'k' twice"),
    "a long key": (file([key(b"k" * (MAX_KEY + 1))]), "bytes of one text"),
    "a key of no text": (file([key(b"\xff")]), "damaged"),
    "a text beyond the end": (file([key(b"k", 8, text(b"x", HUGE))]), "bytes of one text"),
    "a text of no text": (file([key(b"k", 8, text(b"\xff\xfe"))]), "damaged"),
    "an unknown type": (file([key(b"k", 13, b"\0" * 8)]), "of the type 13"),
    "a list of lists": (file([key(b"k", 9, array(9, 1, array(4, 0, b"")))]), "list of lists"),
    "a list of an unknown type": (file([key(b"k", 9, array(77, 1, b""))]), "unknown type"),
    "a long list": (file([key(b"k", 9, array(4, HUGE, b""))]), "numbers, for which"),
    "many texts": (file([key(b"k", 9, array(8, HUGE, b""))]), "texts, for which"),
    "a list of texts beyond the end": (
        file([key(b"k", 9, array(8, 2, text(b"a") + text(b"b", 1 << 23)))]),
        "cut short",
    ),
    "a list of a very long text": (
        file([key(b"k", 9, array(8, 1, text(b"a", HUGE)))]),
        "cut short",
    ),
    "a list of texts beyond the end of a file without tensors": (
        file([key(b"k", 9, array(8, 1, text(b"a", 1 << 20)))], tensors=[], data=0),
        "cut short",
    ),
    "no alignment": (file([key(b"general.alignment", 4, struct.pack("<I", 0))]), "aligns"),
    "alignment 12": (file([key(b"general.alignment", 4, struct.pack("<I", 12))]), "aligns"),
    "alignment of 2 MiB": (
        file([key(b"general.alignment", 4, struct.pack("<I", 2 * MAX_ALIGNMENT))]),
        "aligns its tensors",
    ),
    "alignment in words": (file([key(b"general.alignment", 8, text(b"32"))]), "aligns"),
    "no dimensions": (file(tensors=[tensor(sides=())]), "of 0 dimensions"),
    "five dimensions": (file(tensors=[tensor(sides=(2,) * 5)]), "of 5 dimensions"),
    "many dimensions": (file(tensors=[tensor(dimensions=1 << 31)]), "dimensions"),
    "a side of 0": (file(tensors=[tensor(sides=(8, 0))]), "of the shape"),
    "a product that wraps": (file(tensors=[tensor(sides=(1 << 32, 1 << 32))]), "of the shape"),
    "sides that wrap": (file(tensors=[tensor(sides=((1 << 63) + 1, 2))]), "of the shape"),
    "a nameless tensor": (file(tensors=[tensor(b"")]), "the tensor ''"),
    "a long name": (file(tensors=[tensor(b"t" * (MAX_NAME + 1))]), "bytes of one text"),
    "a tensor twice": (file(tensors=[tensor(), tensor(offset=64)], data=128), "two tensors 't'"),
    "an unknown block": (file(tensors=[tensor(kind=99)]), r"not read \(type 99\)"),
    "blocks that do not divide": (file(tensors=[tensor(sides=(48,), kind=8)]), "do not divide"),
    "an offset between": (file(tensors=[tensor(offset=4)], data=128), "bytes from"),
    "an offset beyond": (file(tensors=[tensor(offset=1 << 40)]), "cut short"),
    "an offset that wraps": (file(tensors=[tensor(offset=(1 << 64) - 32)]), "cut short"),
    "the data cut short": (file(data=63), "cut short"),
    "tensors that overlap": (file(tensors=[tensor(), tensor(b"u", offset=32)], data=99), "overlap"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_contradicts_itself_is_refused(case: str, tmp_path: Path):
    """In under a second and 100 MB."""
    content, words = BAD[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(BadFile, match=words):
        open_weights(path).read()
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1 and peak < 100e6


def test_the_file_that_the_bad_ones_are_made_of_is_good(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(file())
    read = read_gguf(tmp_path / "model.gguf")
    assert read.metadata == {"k": 7} and read.shapes == {"t": (2, 8)}


def test_a_file_cut_anywhere_is_refused(tmp_path: Path):
    whole, path = file([key(), key(b"l", 9, array(8, 2, text(b"a") + text(b"b")))]), tmp_path / "x"
    for length in range(4, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"cut short|room|twice|type"):
            open_weights(path).header  # noqa: B018


def test_a_long_text_in_a_list_is_refused(tmp_path: Path, monkeypatch):
    """Its bytes would be copied, as many as the file has."""
    monkeypatch.setattr(module, "MAX_TEXT", 10)
    for length in (10, 11):
        (tmp_path / "x").write_bytes(file([key(b"k", 9, array(8, 1, text(b"a" * length)))]))
        if length == 10:
            assert open_weights(tmp_path / "x").gguf.metadata["k"] == [b"a" * 10]
    with pytest.raises(BadFile, match="cut short"):
        open_weights(tmp_path / "x").header  # noqa: B018


def test_lists_of_too_many_texts_are_refused(tmp_path: Path, monkeypatch):
    """All lists together: 40 bytes each in memory, and in the file but 8."""
    monkeypatch.setattr(module, "MAX_TEXTS", 1000)
    many = key(b"k", 9, array(8, 1000, bytes(8000)))
    (tmp_path / "x").write_bytes(file([many]))
    assert open_weights(tmp_path / "x").gguf.metadata["k"] == [b""] * 1000
    for bad in (
        [many, key(b"l", 9, array(8, 1, text(b"")))],
        [key(b"k", 9, array(8, 1001, bytes(9000)))],
    ):
        (tmp_path / "x").write_bytes(file(bad))
        with pytest.raises(BadFile, match=r"texts"):
            open_weights(tmp_path / "x").header  # noqa: B018

"""Archives of torch are read as torch reads them, and nothing in them ever runs."""

import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from triptych.weights.files import checkpoint_tensors, torch_archive, zip_archive
from triptych.weights.files.checkpoint_tensors import named_tensors
from triptych.weights.files.pickle_reader import (
    MAX_OPERATIONS,
    StorageRef,
    TensorRef,
    read_pickle,
)
from triptych.weights.files.weight_file import open_weights, read_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore:Detected pickle"
)

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
    *(torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2),
]


class Tower(nn.Module):
    """Named as OpenAI's CLIP is: a module list, a parameter of its own, a buffer, a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, bias=False)
        self.resblocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.class_embedding = nn.Parameter(torch.randn(4))
        self.register_buffer("positions", torch.arange(6).reshape(2, 3))
        self.again = self.resblocks[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(x).mean((2, 3)) + self.class_embedding
        return self.again(self.resblocks(y))


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower()
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) * self.logit_scale.exp()


def states() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = {f"kind.{i}": base[:2].abs().to(kind) for i, kind in enumerate(DTYPES)}
    state |= {"turned": base.t(), "part": base[1:3, ::2], "whole": base, "one": torch.tensor(7.0)}
    state |= {"none": torch.empty(0, 5), "parameter": nn.Parameter(torch.randn(3))}
    return state


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and found[k].shape == v.shape and _bits(found[k]) == _bits(v)
        for k, v in expected.items()
    )


def _bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saved_is_read_as_torch_reads_it(tmp_path: Path, zipped, protocol) -> None:
    path = tmp_path / "model.bin"
    state = states()
    if not zipped:  # the old form cannot hold the types that came after it
        state = {k: v for k, v in state.items() if v.dtype in DTYPES[:12]}
    torch.save(state, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert open_weights(path).kind == ("torch" if zipped else "torch-legacy")
    found = read_weights(path)
    assert same(found, torch.load(path, weights_only=protocol == 2))
    shared = found["whole"].untyped_storage().data_ptr()
    assert found["turned"].untyped_storage().data_ptr() == shared  # as in the file


def test_torchscript_gives_its_tensors_and_not_its_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Clip().half()
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(model), path)
    assert open_weights(path).kind == "torchscript"
    assert same(read_weights(path), dict(torch.jit.load(path).state_dict()))
    assert "visual.resblocks.1.weight" in read_weights(path)


def test_real_checkpoints_have_what_their_summary_says(real_data: Path) -> None:
    folder = real_data / "weights"
    summary = json.loads((folder / "tensor_summary.json").read_text())
    for name, said in summary.items():
        found = read_weights(folder / name)
        told = {k: [list(t.shape), str(t.dtype).split(".")[1]] for k, t in found.items()}
        assert told == said["tensors"]
        loaded = torch.load(folder / name, weights_only=True, map_location="cpu")
        if not isinstance(loaded, dict):
            loaded = {str(i): tensor for i, tensor in enumerate(loaded)}
        assert same(found, loaded)


def test_training_checkpoints_give_their_weights_only(tmp_path: Path) -> None:
    weights = OrderedDict(a=torch.ones(2), b=torch.zeros(3, dtype=torch.int64))
    weights._metadata = {"": {"version": 1}}
    beside = {"args": Namespace(lr=1.0), "where": Path("/x"), "epoch": 3, "seen": {1, 2}}
    optimizer = {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]}
    for key in ("state_dict", "model_state_dict", "model"):
        path = tmp_path / f"{key}.ckpt"
        torch.save({key: weights, "optimizer": optimizer, **beside}, path)
        assert same(read_weights(path), dict(weights))
    torch.save({"encoder": {"w": torch.ones(1)}, "decoder": {"w": torch.zeros(1)}, **beside}, path)
    assert sorted(read_weights(path)) == ["decoder.w", "encoder.w"]


def test_a_whole_pickled_module_is_refused_by_its_class(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        read_weights(path)
    torch.save({"w": torch.ones(2), "sparse": torch.eye(3).to_sparse()}, path)
    with pytest.raises(ValueError, match=r"sparse is an object of torch\._utils\._rebuild_sparse"):
        read_weights(path)


def archive(path: Path, program: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        for name, data in members.items():
            file.writestr(f"archive/data/{name}", data)
    return path


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that run a command when Python reads them."""
    call = text(f"touch {marker}")
    strings = text("os") + text("system")
    return {
        "reduce": b"\x80\x02cos\nsystem\n(" + call + b"tR.",
        "named on the stack": b"\x80\x04" + strings + b"\x93(" + call + b"tR.",
        "instance": b"(" + call + b"ios\nsystem\n.",
        "object": b"(cos\nsystem\n" + call + b"o.",
        "beside the weights": b"\x80\x02}(" + text("state_dict") + b"}"
        + text("x") + b"cposix\nsystem\n(" + call + b"tRu.",
        "by eval": b"\x80\x02c__builtin__\neval\n("
        + text(f"__import__('os').system('touch {marker}')") + b"tR.",
        "by a class": b"\x80\x02csubprocess\nPopen\n((" + text("touch") + text(str(marker))
        + b"ltR.",
    }  # fmt: skip


@pytest.mark.parametrize("how", list(payloads(Path())))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_never_runs(tmp_path: Path, how: str, zipped: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    program = payloads(marker)[how]
    subprocess.run(  # the payload is live: Python's own reader runs it
        [sys.executable, "-c", f"import pickle; pickle.loads({program!r})"],
        capture_output=True, check=False,
    )  # fmt: skip
    for _ in range(100):
        if marker.exists():
            break
        subprocess.run(["sleep", "0.01"], check=True)
    assert marker.exists()
    marker.unlink()
    if zipped:
        archive(path, program)
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        head = io.BytesIO(path.read_bytes())
        for _ in range(3):  # the number, the version, the machine
            for _ in pickletools.genops(head):
                pass
        path.write_bytes(path.read_bytes()[: head.tell()] + program)
    with pytest.raises(ValueError, match="can run programs"):
        read_weights(path)
    assert not marker.exists()


def test_functions_of_other_libraries_are_named_and_not_called(tmp_path: Path) -> None:
    inside = b"\x80\x02}(" + text("w") + b"ctorch.hub\nload\n(" + text("x") + b"tRu."
    with pytest.raises(ValueError, match=r"w is an object of torch\.hub\.load"):
        read_weights(archive(tmp_path / "a.pt", inside))


REF = b"ctorch._utils\n_rebuild_tensor_v2\n("
NO_HOOKS = b"\x89}tR"


def tensor(size: int = 4, offset: int = 0, shape: bytes = b"K\x04\x85", strides=b"K\x01\x85"):
    """The pickle of one float32 tensor over storage 0."""
    where = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    return (
        b"\x80\x02}" + text("w") + REF + b"(" + where + pickle.dumps(size, 2)[2:-1] + b"tQ"
        + pickle.dumps(offset, 2)[2:-1] + shape + strides + NO_HOOKS + b"s."
    )  # fmt: skip


def test_the_hand_made_pickle_is_sound(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", tensor(), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert read_weights(path)["w"].tolist() == [1, 2, 3, 4]


def test_bounds_of_an_archive_are_themselves_allowed(tmp_path: Path, monkeypatch) -> None:
    """Bytes of its pickle, its files, the objects in it, their depth and names."""
    path = tmp_path / "a.pt"
    pickled = tensor()
    files = {"0": struct.pack("<4f", 1, 2, 3, 4)}
    archive(path, pickled, **files)
    with zipfile.ZipFile(path) as inside:
        count = len(inside.namelist())
    for module, name, most, words in (
        (torch_archive, "MAX_HEADER", len(pickled), "has a pickle of"),
        (zip_archive, "MAX_MEMBERS", count, "weights have fewer"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, most)
            assert read_weights(path)["w"].tolist() == [1, 2, 3, 4]
            patch.setattr(module, name, most - 1)
            with pytest.raises(ValueError, match=words):
                read_weights(path)


def nested_dictionary(depth: int, name: str = "a") -> dict:
    reference = TensorRef(StorageRef("0", "FloatStorage", 1), 0, (1,), (1,))
    root = {name: reference}
    for _ in range(depth - 1):
        root = {name: root}
    return root


def test_bounds_of_names_are_themselves_allowed() -> None:
    deepest = checkpoint_tensors.MAX_DEPTH
    assert list(named_tensors(nested_dictionary(deepest))) == [".".join(["a"] * deepest)]
    with pytest.raises(ValueError, match=f"nested deeper than {deepest} levels"):
        named_tensors(nested_dictionary(deepest + 1))
    longest = "n" * checkpoint_tensors.MAX_NAME
    assert list(named_tensors(nested_dictionary(1, longest))) == [longest]
    assert list(named_tensors(nested_dictionary(2, longest))) == [f"{longest}.{longest}"]
    for wrong in (nested_dictionary(1, longest + "n"), nested_dictionary(3, longest)):
        with pytest.raises(ValueError, match="a key that is no name"):
            named_tensors(wrong)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (tensor(size=5), "16 bytes in storage '0' instead of 20"),
        (tensor(size=1 << 40), "instead of"),
        (tensor(offset=1), "beyond the 4 values"),
        (tensor(shape=b"K\x05\x85"), "beyond the 4 values"),
        (tensor(strides=b"K\x02\x85"), "beyond the 4 values"),
        (tensor(strides=b"J\xff\xff\xff\xff\x85"), "no whole numbers"),
        (tensor(shape=b"J\xff\xff\xff\xff\x85"), r"of the shape \(-1,\)"),
        (tensor(shape=b"\x88\x85"), r"of the shape \(True,\)"),
        (tensor(shape=b"J\x00\x00\x00\x7f\x85", strides=b"K\x00\x85"), "beyond the 4 values"),
        (tensor(shape=b"K\x02K\x02\x86"), "beyond the 4 values"),
        (tensor(shape=b"K\x00J\x00\x00\x00\x7fJ\x00\x00\x00\x7f\x87",
                strides=b"K\x01K\x01K\x01\x87"), "of the shape"),
        (tensor().replace(b"FloatStorage", b"QInt8Storage"), "kind QInt8Storage"),
        (tensor().replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001"), "lacks its part"),
        (b"\x80\x02}.", "holds no tensors"),
        (b"\x80\x02K\x01.", "holds no tensors"),
        (b"\x80\x02}", "damaged or cut short"),
        (b"", "damaged or cut short"),
        (b"\x80\x02Ntt.", "damaged or cut short"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.", "damaged or cut short"),
        (b"\x80\x02P0\n.", "uses PERSID"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
    ],
)  # fmt: skip
def test_every_lie_about_a_tensor_is_found(tmp_path: Path, program: bytes, words: str) -> None:
    path = archive(tmp_path / "a.pt", program, **{"0": bytes(16)})
    with pytest.raises(ValueError, match=words):
        read_weights(path)


def test_what_would_grow_without_end_is_refused_at_once(tmp_path: Path) -> None:
    doubled = b"\x80\x02]" + b"q\x00](h\x00h\x00e" * 60 + b"."  # 2 to the 60 leaves
    cycle = b"\x80\x02}q\x00" + text("a") + b"h\x00s."
    keys = b"\x80\x02}(K\x01" + b"q\x00(h\x00h\x00t" * 60 + b"K\x01u."  # a hash of 2 to the 60
    many = b"\x80\x02" + b"]0" * (MAX_OPERATIONS // 2 + 2) + b"N."
    for program in (doubled, cycle, keys, many):
        with pytest.raises(ValueError):
            read_weights(archive(tmp_path / "a.pt", program))


def test_one_long_list_is_not_copied_again_and_again() -> None:
    """By calls, states and searches: what they go through is counted."""
    long = b"\x80\x02]q\x00(" + b"K\x01" * 50_000 + b"e"
    call, state = (
        b"cbuiltins\nset\nh\x00\x85R0",
        b"c__torch__.A\nB\n)R}q\x01(X\x01\x00\x00\x00ah\x00ub0",
    )
    read_pickle(io.BytesIO(long + call * 15 + state * 15 + b"."))
    with pytest.raises(ValueError, match="damaged"):
        read_pickle(io.BytesIO(long + call * 30 + b"."))


def test_a_search_for_tensors_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    children, calls = checkpoint_tensors._children, []

    def count(value):
        calls.append(value)
        return children(value)

    monkeypatch.setattr(checkpoint_tensors, "MAX_OBJECTS", 1000)
    monkeypatch.setattr(checkpoint_tensors, "_children", count)
    shared = [None] * 300
    with pytest.raises(ValueError, match="more than 1,000 objects"):
        named_tensors({f"{n}": shared for n in range(300)})
    assert len(calls) < 3000


def test_compressed_members_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(states(), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as stored,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match=r"compressed members.*zip -0"):
        read_weights(tmp_path / "b.pt")


def test_an_archive_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", tensor(), **{"0": bytes(16)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="order of bytes"):
        read_weights(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(8 << 20)}, tmp_path / "large.pt")  # 32 MiB
    before = resident()
    tensor = read_weights(tmp_path / "large.pt")["w"]
    opened = resident() - before
    assert float(tensor.sum()) == 8 << 20
    assert opened < 4 << 20 < 28 << 20 < resident() - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bodies() -> list[tuple[str, bytes]]:
    made = []
    small = {"a": torch.arange(6.0).reshape(2, 3), "b": {"c": torch.ones(2, dtype=torch.int8)}}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(small, buffer, _use_new_zipfile_serialization=zipped)
        made.append(("torch", buffer.getvalue()))
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return [*made, ("script", buffer.getvalue())]


BODIES = bodies()
FUZZ = settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(
    which=st.integers(0, len(BODIES) - 1),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_damage_gives_a_sentence_and_never_anything_else(tmp_path: Path, which, flips, cut) -> None:
    data = bytearray(BODIES[which][1])
    for place, value in flips:
        data[place % len(data)] = value
    path = tmp_path / "damaged.pt"
    path.write_bytes(data[: cut % len(data)] if cut is not None else data)
    try:
        found = read_weights(path)
    except ValueError:
        return
    assert sum(t.clone().nbytes for t in found.values()) <= 8 * len(data)


@FUZZ
@given(st.lists(st.sampled_from(pickletools.opcodes), max_size=40), st.binary(max_size=200))
def test_no_order_of_operations_breaks_the_machine(operations, noise) -> None:
    stream = bytearray()
    for i, operation in enumerate(operations):
        stream += operation.code.encode("latin1") + noise[5 * i : 5 * i + 5]
    for program in (bytes(stream) + b".", bytes(noise)):
        try:
            read_pickle(io.BytesIO(program))
        except ValueError:
            continue

"""Arrays in the forms of MNIST, CIFAR and numpy, and the built-in digits."""

import builtins
import gzip
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import run
from triptych.data.disk.index import Index
from triptych.data.disk.table import select_classes
from triptych.data.order.batches import take
from triptych.data.sources import open_index, open_source


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(folder, count=12, packed=False):
    images, labels = noise(count, 5, 4), np.arange(count, dtype=np.uint8) % 3
    for split in ("train", "t10k"):
        for what, rank, array in (("images", 3, images), ("labels", 1, labels)):
            path = folder / f"{split}-{what}-idx{rank}-ubyte"
            if packed:
                (folder / f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path, packed):
    images, labels = mnist(tmp_path, packed=packed)
    for split in ("train", "test"):
        source = open_source(str(tmp_path), split=split)
        columns = source.read(range(source.info.length))
        assert np.array_equal(columns["image"][..., 0], images)
        assert columns["label"].tolist() == labels.tolist()
        assert source.info.classes == ("0", "1", "2") and source.info.shape == (5, 4, 1)


def test_pictures_of_some_classes_keep_their_labels(tmp_path):
    images, labels = mnist(tmp_path)
    part = select_classes(open_source(str(tmp_path)), (0, 2))
    columns = part.read(range(part.info.length))
    rows = np.flatnonzero(labels != 1)
    assert np.array_equal(columns["image"][..., 0], images[rows])
    assert columns["label"].tolist() == part.labels.tolist() == labels[rows].tolist()
    assert part.info.classes == ("0", "1", "2")
    with pytest.raises(ValueError, match="no pictures are left"):
        select_classes(part, (1,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "announces 240 bytes, the file has only 239"),
        (lambda data: data + b"x", "the file has more"),
        (lambda data: b"", "cannot be read"),
        (lambda data: b"<html>" + data, "not an IDX"),
        (
            lambda data: struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31),
            "announces .* more than",
        ),
        (lambda data: idx(np.zeros(12, np.uint8)), "not that of pictures"),
        (lambda data: idx(noise(11, 5, 4)), "labels of .* for 11 pictures"),
    ],
)
def test_damaged_idx_is_an_error_that_says_what(tmp_path, change, said):
    mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=said):
        open_source(str(tmp_path))


def test_a_cut_gz_is_an_error(tmp_path):
    mnist(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(str(tmp_path))


def test_two_data_sets_in_one_folder_are_not_mixed(tmp_path):
    images, _ = mnist(tmp_path)
    (tmp_path / "more-train-images-idx3-ubyte").write_bytes(idx(images))
    with pytest.raises(ValueError, match="several data sets"):
        open_source(str(tmp_path))


def test_arrays_outside_the_folder_are_not_read(tmp_path):
    (tmp_path / "outside").mkdir()
    mnist(tmp_path / "outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    for path in (tmp_path / "outside").iterdir():
        (inside / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="a link that leads outside the folder"):
        open_source(str(inside))


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_binary(tmp_path, hundred):
    images, labels = noise(6, 32, 32, 3), np.array([0, 1, 2, 3, 2, 1], np.uint8)
    records = [
        (b"\x05" if hundred else b"") + bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    ]
    names = ["train.bin", "test.bin"] if hundred else ["data_batch_1.bin", "test_batch.bin"]
    (tmp_path / names[0]).write_bytes(b"".join(records[:4]))
    (tmp_path / names[1]).write_bytes(b"".join(records[4:]))
    words = "fine_label_names.txt" if hundred else "batches.meta.txt"
    (tmp_path / words).write_text("ant\nbee\ncow\ndog\n\n")
    train, test = (open_source(str(tmp_path), split=split) for split in ("train", "test"))
    assert train.info.classes == ("ant", "bee", "cow", "dog")
    assert np.array_equal(train.read(range(4))["image"], images[:4])
    assert test.read(range(2))["label"].tolist() == [2, 1]


def test_pickles_are_never_opened(tmp_path):
    """CIFAR's python version; the payload would leave a mark."""

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"never opened.*binary version"):
        open_source(str(tmp_path))
    np.savez(tmp_path / "a.npz", images=np.array([Payload()], object))
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(str(tmp_path / "a.npz"))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("arrays", "splits"),
    [
        ({"images": noise(20, 4, 4), "labels": np.arange(20)}, {}),
        ({"x_train": noise(20, 4, 4, 3), "y_train": np.arange(20), "x_test": noise(2, 4, 4, 3),
          "y_test": np.arange(2)}, {"train": 20, "test": 2}),
        ({"train_images": noise(20, 4, 4, 1), "train_labels": np.arange(20)[:, None],
          "val_images": noise(3, 4, 4, 1), "val_labels": np.arange(3)[:, None]},
         {"train": 20, "val": 3, "test": 3}),
        ({"data": noise(20, 3, 8, 8)}, {}),
        ({"x": (noise(20, 4, 4) / 255).astype(np.float32), "y": np.arange(20)}, {}),
    ],
)  # fmt: skip
def test_npz(tmp_path, arrays, splits):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    index = open_index(str(tmp_path / "a.npz"))
    first = next(iter(arrays.values()))
    first = np.rint(first * 255).astype(np.uint8) if first.dtype == np.float32 else first
    first = first.transpose(0, 2, 3, 1) if first.shape[1:] == (3, 8, 8) else first
    assert isinstance(index, Index) and np.array_equal(
        index.stored.images[:20].squeeze(), first.squeeze()
    )
    for split, count in splits.items():
        assert open_source(str(tmp_path / "a.npz"), split=split).info.length == count


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": noise(2, 4, 4)}, "has no array of pictures, only pictures: call"),
        ({"images": noise(2, 4, 4).astype(float)}, "expected uint8, or floats"),
        ({"images": noise(2, 4, 4, 2)}, "1 or 3 channels"),
        ({"images": noise(2, 4, 4), "labels": np.arange(3)}, "for 2 pictures"),
        ({"images": noise(2, 4, 4), "labels": np.array([0.5, 1])}, "whole number"),
        ({"images": noise(2, 4, 4), "labels": np.array([-1, 0])}, "count from 0"),
        ({"images": noise(2, 4, 4), "labels": np.array([0, 10**9])}, "count from 0"),
        ({"images": noise(0, 4, 4)}, "announces 0 bytes"),
        ({"images": noise(2, 4, 4), "x": noise(2, 4, 4)}, "second such array"),
        ({"x_train": noise(2, 4, 4), "x_test": noise(2, 5, 5)}, "different shapes"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        open_source(str(tmp_path / "a.npz"))


def test_a_damaged_npz_is_an_error(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(str(tmp_path / "a.npz"))


def write_npz(path, shape):
    """An archive with one small array whose header announces a shape."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    header = header.ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", data)


@pytest.mark.parametrize("shape", [(4, 4, 5), (2**40, 4, 4), (10**20, 10**20, 3)])
def test_memory_is_not_reserved_for_what_a_damaged_header_announces(tmp_path, shape):
    write_npz(tmp_path / "a.npz", (4, 4, 4))
    assert len(open_index(str(tmp_path / "a.npz"))) == 4
    write_npz(tmp_path / "a.npz", shape)
    with pytest.raises(ValueError, match=r"cannot be read: the header of 'images' announces"):
        open_index(str(tmp_path / "a.npz"))


def npy(shape="(4, 4, 4)", header=None, magic=b"\x93NUMPY\x01\x00", data=bytes(64)):
    """The bytes of an array with any header."""
    header = header or f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    header = header.ljust(117) + "\n"
    return magic + struct.pack("<H", len(header)) + header.encode() + data


SHAPES = (
    "(2**62, 4, 4)", f"({2**62}, 2, 2)", "(True, 4, 4)", "(4, 4, True)",
    f"({10**20}, 0, 4)", "(-4, 4, -4)",
    f"({10**12}, 1, 1)", "(4.0, 4, 4)", "[4, 4, 4]", "4", "'abc'", "((4,), 4, 4)",
    "(0, 4, 4)", "(4, 0, 4)",
    "(4, 4, 4", f"({'9' * 5000},)", "(" * 500, "(4,) * 3", "None", "()", "(1,) + ()",
)  # fmt: skip
ARRAYS = {
    "no magic": npy(magic=b"NUMPYX\0\0"),
    "version 9": npy(magic=b"\x93NUMPY\x09\x00"),
    "header cut": npy()[:40],
    "nothing": b"",
    "data cut": npy()[:-10],
    "objects": npy(header="{'descr': '|O', 'fortran_order': False, 'shape': (4, 4, 4)}"),
    "no width": npy(header="{'descr': '|V0', 'fortran_order': False, 'shape': (4, 4, 4)}"),
    "a strange type": npy(header="{'descr': '|zz', 'fortran_order': False, 'shape': (4, 4, 4)}"),
    "another key": npy(header="{'descr': '|u1', 'order': False, 'shape': (4, 4, 4)}"),
    "no dictionary": npy(header="[" * 90),
    "text": b"hello, I am an array",
    **{f"shape {shape:.30}": npy(shape) for shape in SHAPES},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_that_is_no_array_is_one_error(tmp_path, kind, capsys):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", ARRAYS[kind])
    refused(path, capsys)


def refused(path, capsys):
    """With exit code 3 and one sentence, which names the file, in `data check` and everywhere."""
    with pytest.raises(ValueError, match=path.name.split(".")[0].removesuffix("-gz")):
        open_index(str(path))
    assert run(["data", "check", str(path)]) == 3
    said = capsys.readouterr().err
    assert said.startswith("triptych: ") and said.count("\n") == 1 and len(said) < 500


@pytest.mark.parametrize(("at", "value"), [(8, 99), (6, 1), (14, 255), (18, 1), (26, 0)])
def test_a_damaged_zip_is_one_error(tmp_path, at, value, capsys):
    """Compression method 99, encryption, sums and sizes, in the header and in the directory."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy())
    data = bytearray(path.read_bytes())
    directory = data.rfind(b"PK\1\2")
    data[at] = data[directory + at + 2] = value
    path.write_bytes(data)
    refused(path, capsys)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:50],
        lambda data: data.replace(b"PK\1\2", b"PK\1\0"),
        lambda data: b"",
    ],
)
def test_what_is_no_zip_is_one_error(tmp_path, damage, capsys):
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(4, 4, 4))
    path.write_bytes(damage(path.read_bytes()))
    refused(path, capsys)


def test_damaged_files_of_mnist_and_cifar_are_one_error(tmp_path, capsys):
    for name, data in {
        "train-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">III", 0, 28, 28),
        "train-images-idx3-ubyte.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\3\xff\xff",
        "t10k-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 9),
    }.items():
        path = tmp_path / name.replace(".", "-")
        path.mkdir()
        (path / name).write_bytes(data)
        refused(path, capsys)
    cifar = tmp_path / "cifar"
    cifar.mkdir()
    (cifar / "data_batch_1.bin").write_bytes(bytes(3073))
    (cifar / "batches.meta.txt").write_bytes(b"cat\n\xff\xfe")
    refused(cifar, capsys)


def test_a_single_array_or_text_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npy", noise(4, 4, 4))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="a single array, not an archive"):
        open_index(str(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("images.npy", "no array")
    with pytest.raises(ValueError, match="cannot be read"):
        open_index(str(tmp_path / "b.npz"))


def test_resizing_and_colours_are_those_of_pillow(tmp_path):
    images = noise(20, 9, 9, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20))
    source = open_source(str(tmp_path / "a.npz"), size=5, channels=1)
    columns = source.read(range(source.info.length))
    for picture, label in zip(columns["image"], columns["label"], strict=True):
        grey = Image.fromarray(images[label]).convert("L").resize((5, 5), Image.Resampling.BICUBIC)
        assert np.abs(picture[..., 0].astype(int) - np.asarray(grey)).max() <= 1
    assert open_source("digits", channels=3).read([0])["image"].shape == (1, 8, 8, 3)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    expected = sorted(
        (label, np.rint(image * 255 / 16).astype(np.uint8).tobytes())
        for label, image in zip(theirs.target.tolist(), theirs.images, strict=True)
    )
    train, test = (open_source("digits", split=split) for split in ("train", "test"))
    assert (train.info.length, test.info.length, train.info.shape) == (1500, 297, (8, 8, 1))
    ours = []
    for source in (train, test):
        columns = source.read(range(source.info.length))
        ours += zip(
            columns["label"].tolist(), map(np.ndarray.tobytes, columns["image"]), strict=True
        )
    assert sorted(ours) == expected
    assert np.bincount(test.read(range(297))["label"]).min() >= 15  # every digit is tested


def test_digits_without_scikit_learn_name_the_command(monkeypatch):
    monkeypatch.setattr("triptych.data.digits.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'triptych\[evaluation\]'"):
        open_source("digits")


def test_digits_do_not_import_scikit_learn(monkeypatch):
    """It would take seconds, and start threads before the data workers are forked."""
    real = builtins.__import__

    def refusing(name, *args, **options):
        assert not name.startswith("sklearn")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    assert open_source("digits").info.length == 1500


def test_mnist(real_data):
    folder = real_data / "mnist"
    train, test = (open_source(str(folder), split=split) for split in ("train", "test"))
    assert (train.info.length, test.info.length) == (60_000, 10_000)
    assert take(train, range(10))["label"].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert take(test, range(10))["label"].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    published = 0.1307 * 2 - 1  # the mean that every tutorial normalises by
    assert take(train, range(0, 60_000, 7))["image"].mean().item() == pytest.approx(
        published, abs=2e-3
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "Did you mean 'digits'"),
        ("scense", "Did you mean 'scenes'"),
        ("nowhere/at/all", "the path does not exist"),
    ],
)
def test_an_unknown_source_offers_the_nearest(name, said):
    with pytest.raises(ValueError, match=said):
        open_source(name)


def test_a_misspelt_path_offers_its_neighbour(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(ValueError, match=r"Did you mean '.*/holiday'"):
        open_source(str(tmp_path / "holliday"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="not a source of pictures"):
        open_source(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 5000}, {"channels": 2}, {"split": "tets"}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"size must|channels must|split 'tets'"):
        open_source("digits", **options)

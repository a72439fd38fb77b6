"""One reader for every form of folder, and tars read as the folder they would unpack to."""

import csv
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from triptych.data import sources
from triptych.data.disk.table import select_split
from triptych.data.order.batches import take
from triptych.data.sources import open_index, open_source, open_train_and_test


def picture(path, value=0, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def rows(index):
    """Everything said of every picture, by name: what a reader can be compared by."""
    said = index.annotations
    return {
        name: (
            said.classes[said.labels[i]] if said.labels is not None else None,
            said.captions[i] if said.captions else None,
            index.stored.load(i, 1, None).mean(),
        )
        for i, name in enumerate(index.names)
    }


def test_subfolders_are_classes(tmp_path):
    for i, name in enumerate(["dog", "cat", "ant"]):
        for j in range(3):
            picture(tmp_path / name / "deeper" / f"{j}.png", 10 * i + j)
    source = open_source(str(tmp_path))
    assert source.info.classes == ("ant", "cat", "dog")
    batch = take(source, range(source.info.length))
    values = ((batch["image"].mean(dim=(1, 2, 3)) + 1) * 127.5).round().long()
    assert (2 - values // 10).tolist() == batch["label"].tolist()


@pytest.mark.parametrize(
    "names", [["1.png", "2.png"], ["one/1.png", "one/2.png"], ["a/1.png", "2.png"]]
)
def test_one_folder_or_none_is_no_class(tmp_path, names):
    for name in names:
        picture(tmp_path / name)
    assert open_index(str(tmp_path)).annotations.classes == ()


def test_split_folders(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("Test", 3)):
        for label in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / split / label / f"{i}.png")
    picture(tmp_path / "cover.png")
    lengths = {
        s: open_source(str(tmp_path), split=s).info.length
        for s in ("train", "val", "validation", "test")
    }
    assert lengths == {"train": 8, "val": 4, "validation": 4, "test": 6}
    index = open_index(str(tmp_path))
    assert index.annotations.classes == ("cat", "dog")
    assert index.notes == ("1 pictures are ignored: they are in no folder of a split",)
    with pytest.raises(ValueError, match=r"no picture is in the split 'tset'.*'test'"):
        open_source(str(tmp_path), split="tset")


@pytest.mark.parametrize("name", ["digits", "scenes-one", "folder"])
def test_train_and_test_together_are_each_alone_and_indexed_once(tmp_path, monkeypatch, name):
    for i in range(30):
        picture(tmp_path / f"{i}.png", i, (2, 2))
    name = str(tmp_path) if name == "folder" else name
    alone = [open_source(name, split=split, size=32) for split in ("train", "test")]
    looks, look = [], sources.open_index
    monkeypatch.setattr(sources, "open_index", lambda name: looks.append(name) or look(name))
    together = open_train_and_test(name, size=32)
    assert len(looks) == (0 if name == "scenes-one" else 1)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.info == theirs.info
        assert (ours.read([0, 1])["image"] == theirs.read([0, 1])["image"]).all()


def test_a_class_may_be_called_test(tmp_path):
    for label in ("test", "dog"):
        picture(tmp_path / label / "1.png")
    assert open_index(str(tmp_path)).annotations.classes == ("dog", "test")


def test_classes_are_the_same_in_every_split(tmp_path):
    """A class that the test split lacks must not shift the numbers of the others."""
    for name in ("train/ant", "train/bee", "train/cow", "test/cow"):
        picture(tmp_path / name / "1.png")
    source = open_source(str(tmp_path), split="test")
    assert source.info.classes[int(take(source, [0])["label"][0])] == "cow"


def test_a_tenth_is_held_out_where_the_data_hold_out_nothing(tmp_path):
    for i in range(300):
        picture(tmp_path / f"{i}.png", i % 256, (1, 1))
    train, test = (open_source(str(tmp_path), split=split) for split in ("train", "test"))
    assert 15 <= test.info.length <= 48 and train.info.length + test.info.length == 300
    held_out = {test.index.names[row] for row in test.rows}
    picture(
        tmp_path / "another.png", size=(1, 1)
    )  # more data moves nothing from one side to the other
    again = open_source(str(tmp_path), split="test")
    assert {again.index.names[row] for row in again.rows} - {"another.png"} == held_out


COLUMNS = [
    {"file_name": "a.png", "colour": "red", "smiling": True, "weight": 1.5, "legs": 4, "id": "x"},
    {"file_name": "b.png", "colour": "blue", "smiling": False, "weight": 2.5, "legs": 2, "id": "y"},
    {"file_name": "c.png", "colour": "red", "smiling": True, "weight": -3.0, "legs": 4, "id": "z"},
]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_columns_become_attributes_and_numbers(tmp_path, form):
    """The same table as JSON and as CSV, where everything is text."""
    table = [dict(row) for row in COLUMNS]
    for i in range(12):  # an id is different everywhere
        table += [{**COLUMNS[i % 3], "file_name": f"{i}.png", "id": f"y{i}"}]
    for row in table:
        picture(tmp_path / row["file_name"])
    with (tmp_path / f"metadata.{form}").open("w", newline="") as file:
        if form == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in table)
        else:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    index = open_index(str(tmp_path))
    assert index.annotations.attributes == (
        "colour=blue",
        "colour=red",
        "smiling",
        "legs=2",
        "legs=4",
    )
    assert index.annotations.vector == ("weight",)
    assert index.notes == ("column 'id' is ignored: nearly every picture has another value",)
    where = index.names.index("b.png")
    assert index.annotations.attribute_values[where].tolist() == [1, 0, 0, 1, 0]
    assert index.annotations.vector_values[where].tolist() == [2.5]
    batch = take(open_source(str(tmp_path)), [0, 1])
    assert batch["attributes"].shape == (2, 5) and batch["vector"].shape == (2, 1)


def test_lists_of_words_are_attributes(tmp_path):
    lists = {"a.png": ["red", "striped"], "b.png": [], "c.png": ["red"]}
    for name in lists:
        picture(tmp_path / name)
    lines = [json.dumps({"file_name": n, "attributes": words}) for n, words in lists.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    said = open_index(str(tmp_path)).annotations
    assert said.attributes == ("red", "striped")
    assert said.attribute_values.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_a_missing_number_is_skipped_and_a_missing_word_is_not(tmp_path):
    lines = ["file_name,size,colour"]
    for i in range(20):
        picture(tmp_path / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{'' if i == 3 else i + 0.5},{'' if i == 4 else 'red'}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    index = open_index(str(tmp_path))
    assert index.skipped == {"03.png": "no number for size"}
    assert index.annotations.attribute_values[index.names.index("04.png")].tolist() == [0]
    assert index.annotations.vector_values[0] == 0.5 and index.annotations.vector_values[3] == 4.5


@pytest.mark.parametrize("number", ["1e300", "-3.5e38"])
def test_a_number_beyond_single_precision_is_skipped(tmp_path, number):
    """As infinity it would end the training."""
    lines = ["file_name,size"]
    for i in range(20):
        picture(tmp_path / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{number if i == 3 else i + 0.5}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    index = open_index(str(tmp_path))
    assert index.skipped == {"03.png": "no number for size"}
    assert np.isfinite(index.annotations.vector_values).all()


def test_metadata_labels_splits_and_folders(tmp_path):
    lines = []
    for i in range(10):
        picture(tmp_path / "images" / f"{i}.png")
        split = "test" if i >= 8 else "train"
        lines.append(json.dumps({"file_name": f"{i}.png", "label": 10 - i, "split": split}))
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path), split="test")
    assert source.info.length == 2
    assert source.info.classes == tuple(str(n) for n in range(1, 11))  # as numbers, not as words
    assert [source.info.classes[i] for i in take(source, [0, 1])["label"]] == ["2", "1"]


def test_boxes_in_pixels_become_relative(tmp_path):
    picture(tmp_path / "a.png", size=(40, 20))
    objects = {"bbox": [[10, 5, 20, 10], [-4, 0, 100, 100]], "categories": ["cat", "dog"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "objects": objects}))
    columns = open_source(str(tmp_path)).read([0])
    assert columns["boxes"][0].tolist() == [[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]]
    assert columns["box_labels"] == [["cat", "dog"]]


def test_boxes_of_yolo(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("3 0.5 0.5 0.5 0.25\n0 0.125 0.125 0.25 0.25\n")
    (tmp_path / "b.txt").write_text("")
    index = open_index(str(tmp_path))
    assert index.annotations.boxes[0].tolist() == [[0.25, 0.375, 0.75, 0.625], [0, 0, 0.25, 0.25]]
    assert index.annotations.box_labels == [("3", "0"), ()] and index.annotations.captions is None
    assert index.skipped == {}


@pytest.mark.parametrize(
    "objects",
    [5, {"bbox": 5}, {"bbox": [[1, 2, 3]]}, {"bbox": [[0, 0, 0, 5]]}, {"bbox": [["a", 0, 1, 1]]},
     {"bbox": [[0, 0, 1, float("nan")]]}, {"bbox": [[0, 0, 1, 1]], "categories": []}],
)  # fmt: skip
def test_broken_boxes_are_skipped(tmp_path, objects):
    lines = [json.dumps({"file_name": "00.png", "objects": objects})]
    for i in range(20):
        picture(tmp_path / f"{i:02d}.png")
        lines += [json.dumps({"file_name": f"{i:02d}.png"})] * (i > 0)
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert list(open_index(str(tmp_path)).skipped) == ["00.png"]


def test_sizes_and_channels(tmp_path):
    picture(tmp_path / "a.png", size=(8, 6))
    picture(tmp_path / "b.png", size=(8, 6))
    assert open_source(str(tmp_path)).info.shape == (6, 8, 1)
    assert open_source(str(tmp_path), size=5, channels=3).info.shape == (5, 5, 3)
    picture(tmp_path / "c.png", size=(9, 6), mode="RGB")
    assert open_source(str(tmp_path), size=4).info.shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"2 different sizes, from 8 x 6 to 9 x 6: choose"):
        open_source(str(tmp_path))


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    for i in range(5):
        picture(tmp_path / f"{i}.png", i)
    source = open_source(str(tmp_path), size=4)
    once = source.read(range(source.info.length))["image"]
    monkeypatch.setattr("triptych.data.disk.folder.open_picture", None)  # a second call would fail
    assert np.array_equal(source.read(range(source.info.length))["image"], once)


def test_too_large_for_memory_is_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr("triptych.data.disk.table.MEMORY", 10)
    for i in range(5):
        picture(tmp_path / f"{i}.png", i)
    source = open_source(str(tmp_path))
    assert source.pictures.kept is None
    assert source.read([0, 1])["image"].shape == (2, 8, 8, 1)


def test_an_empty_folder_says_so(tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match="contains no pictures"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("odd", ["with space", "ünï-雪🦊", "x" * 240, "new\nline", b"\xff\xfe"])
def test_odd_file_names(tmp_path, odd):
    import os

    path = (
        os.fsencode(tmp_path) + b"/" + (odd if isinstance(odd, bytes) else odd.encode()) + b".png"
    )
    Image.new("L", (4, 4), 7).save(os.fsdecode(path))
    index = open_index(str(tmp_path))
    assert index.stored.load(0, 1, None).mean() == 7
    index.names[0].encode()  # whatever it is called, its name can be printed


def samples(root):
    for i in range(30):
        folder = root / ("cat" if i % 2 else "dog")
        picture(folder / f"{i:02d}.png", i)
        if i % 3 == 0:
            (folder / f"{i:02d}.txt").write_text(f"text {i}\nmore {i}")
        else:
            captions = {"captions": [f"json {i}", f"more {i}"], "ignored": 5}
            (folder / f"{i:02d}.json").write_text(json.dumps(captions))


def test_a_tar_reads_as_the_folder_it_unpacks_to(tmp_path):
    root = tmp_path / "set"
    samples(root)
    with tarfile.open(tmp_path / "set.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root), recursive=False)
    folder, tar = rows(open_index(str(root))), rows(open_index(str(tmp_path / "set.tar")))
    assert len(folder) == 30
    assert {f"set.tar/{name}": row for name, row in folder.items()} == tar


def test_shards_by_range_and_by_folder(tmp_path):
    for number in range(3):
        with tarfile.open(tmp_path / f"part-{number:03d}.tar", "w") as tar:
            for i in range(2):
                picture(tmp_path / "x.png", 10 * number + i)
                (tmp_path / "x.cls").write_text(str(number))
                tar.add(tmp_path / "x.png", f"{number}{i}.png")
                tar.add(tmp_path / "x.cls", f"{number}{i}.cls")
    (tmp_path / "x.png").unlink()
    by_range = rows(open_index(str(tmp_path / "part-{000..002}.tar")))
    assert by_range == rows(open_index(str(tmp_path)))
    assert [row[0] for row in by_range.values()] == ["0", "0", "1", "1", "2", "2"]
    assert len(rows(open_index(str(tmp_path / "part-{001..002}.tar")))) == 4
    with pytest.raises(ValueError, match=r"the path does not exist.*part-00"):
        open_index(str(tmp_path / "part-{000..003}.tar"))


def test_splits_of_tars_by_their_names(tmp_path):
    for split, count in (("train-00", 3), ("train-01", 2), ("val2017", 1)):
        with tarfile.open(tmp_path / f"coco-{split}.tar", "w") as tar:
            for i in range(count):
                picture(tmp_path / "x.png", i)
                tar.add(tmp_path / "x.png", f"{split}{i}.png")
    (tmp_path / "x.png").unlink()
    assert open_source(str(tmp_path)).info.length == 5
    assert open_source(str(tmp_path), split="test").info.length == 1  # for want of a test split


def test_odd_members_of_a_tar_are_skipped_never_followed(tmp_path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(60):
            picture(tmp_path / "x.png", i)
            tar.add(tmp_path / "x.png", f"{i:02d}.png")
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
        tar.add(tmp_path / "x.png", "../../out.png")
        tar.add(tmp_path / "x.png", "59.png")
    index = open_index(str(path))
    assert len(index) == 60
    assert index.skipped == {
        "odd.tar/link.png": "a link, device or sparse file in a tar",
        "odd.tar/hard.png": "a link, device or sparse file in a tar",
        "odd.tar/pipe.png": "a link, device or sparse file in a tar",
        "odd.tar/../../out.png": "a path that leads outside the tar",
        "odd.tar/59.png again": "a second file of the same name",
    }
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["odd.tar", "x.png"]


def test_compressed_tars_are_refused_with_the_command(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        picture(tmp_path / "x.png")
        tar.add(tmp_path / "x.png", "x.png")
    with pytest.raises(ValueError, match=r"compressed.*`gunzip a\.tar\.gz`"):
        open_index(str(tmp_path / "a.tar.gz"))
    with pytest.raises(ValueError, match="gunzip"):  # a folder of them does not look empty
        (tmp_path / "x.png").unlink()
        open_index(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "header", "not a tar"])
def test_damaged_tars_are_refused(tmp_path, damage):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(5):
            picture(tmp_path / "x.png", i, size=(64, 64), mode="L")
            tar.add(tmp_path / "x.png", f"{i}.png")
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        size = tar.getmembers()[2].offset
    if damage == "cut":
        data = data[: size + 600]
    elif damage == "header":
        data[size : size + 20] = b"\xff" * 20
    else:
        data = bytearray(b"hello" * 1000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged|not a readable tar"):
        open_index(str(path))


@pytest.mark.slow
def test_flickr8k(real_data):
    """Counts and captions against what the data set's own lists say."""
    folder = real_data / "flickr8k_128"
    index = open_index(str(folder))
    for split, count in (("train", 6000), ("val", 1000), ("test", 1000)):
        source = select_split(index, split, None, None)
        assert source.info.length == count and source.info.shape == (128, 128, 3)
        listed = (folder / f"split_{split}.txt").read_text().split()
        names = {source.index.names[row].split("/")[1].removesuffix(".jpg") for row in source.rows}
        assert names == {name.removesuffix(".jpg") for name in listed}
        assert all(len(source.index.annotations.captions[row]) == 5 for row in source.rows)
    with tarfile.open(folder / "flickr8k-test-00.tar") as tar:
        first = tar.getnames()[0]
        captions = json.load(tar.extractfile(first.replace(".jpg", ".json")))["captions"]
        expected = np.asarray(Image.open(tar.extractfile(first)))
    row = source.index.names.index(f"flickr8k-test-00.tar/{first}")
    assert list(source.index.annotations.captions[row]) == captions
    assert np.array_equal(source.index.stored.load(row, 3, None), expected)


def test_coco(real_data):
    index = open_index(str(real_data / "coco128_256"))
    assert len(index) == 256 and sum(map(len, index.annotations.boxes)) == 1827
    assert index.annotations.captions is None and index.skipped == {}


@pytest.mark.parametrize("count", [*range(1, 12), 25])
def test_a_few_pictures_have_both_splits(tmp_path, count):
    """Training needs something to learn from and something to be judged by."""
    for i in range(count):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    train, test = open_train_and_test(str(tmp_path))
    learned, judged = (set(source.rows.tolist()) for source in (train, test))
    assert learned | judged == set(range(count)) and learned and judged
    assert not learned & judged or count == 1


def test_two_files_whose_names_are_written_the_same_are_told_apart(tmp_path):
    import os

    for name in (b"/\\xff.png", b"/\xff.png"):
        Image.new("L", (4, 4), 7).save(os.fsdecode(os.fsencode(tmp_path) + name))
    index = open_index(str(tmp_path))
    assert len(index) == 1
    assert index.skipped == {"\\xff.png again": "a second file whose name is written the same"}

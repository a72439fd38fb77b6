"""COCO's annotation files, against what pycocotools reads of the same files."""

import contextlib
import io
import json
import tarfile
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from triptych.data.sources import open_index, open_source

SPLITS = {"train2017": 12, "val2017": 5}
NAMES = {1: "person", 18: "dog", 90: "tooth brush"}


def annotations(first, count, draws):
    """Lists as COCO's files have them: two captions, and up to three boxes, a picture."""
    images, captions, boxes = [], [], []
    for number in range(first, first + count):
        # Annotated at 40 x 20 pixels; the pictures here are half as large.
        images.append({"id": number, "file_name": f"{number:06d}.png", "width": 40, "height": 20})
        for turn in range(2):
            text = {
                "image_id": number,
                "id": len(captions),
                "caption": f"picture {number} {turn}\n",
            }
            captions.append(text)
        for _ in range(draws.integers(0, 4)):
            x, y, width, height = draws.uniform(1, 10, 4).tolist()
            boxes.append({"image_id": number, "id": len(boxes) + 1, "bbox": [x, y, width, height],
                          "category_id": int(draws.choice(list(NAMES))), "iscrowd": 0,
                          "area": width * height, "segmentation": [[x, y, x, y + 1]]})  # fmt: skip
    draws.shuffle(captions)
    return images, captions, boxes


@pytest.fixture
def coco(tmp_path):
    """The layout of the download: `train2017/`, `val2017/`, `annotations/`."""
    draws = np.random.default_rng(0)
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    for at, (split, count) in enumerate(SPLITS.items()):
        images, captions, boxes = annotations(100 * at + 1, count, draws)
        categories = [{"id": number, "name": name} for number, name in NAMES.items()]
        for image in images:
            path = tmp_path / "set" / split / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (20, 10), image["id"] % 200).save(path)
        for kind, lists in (
            ("captions", {"annotations": captions}),
            ("instances", {"annotations": boxes, "categories": categories}),
        ):
            path = tmp_path / "set" / "annotations" / f"{kind}_{split}.json"
            path.write_text(json.dumps({"images": images} | lists))
    return tmp_path / "set"


def expected(folder):
    """What pycocotools says of each file name: captions, and boxes with their categories."""
    from pycocotools.coco import COCO

    captions, boxes = defaultdict(list), defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        with contextlib.redirect_stdout(io.StringIO()):
            api = COCO(str(path))
        for image in api.loadImgs(api.getImgIds()):
            for found in api.loadAnns(api.getAnnIds(imgIds=image["id"])):
                if "caption" in found:
                    captions[image["file_name"]].append(found["caption"].strip())
                else:
                    x, y, width, height = found["bbox"]
                    box = np.array([x / 40, y / 20, (x + width) / 40, (y + height) / 20])
                    name = api.loadCats(found["category_id"])[0]["name"]
                    boxes[image["file_name"]].append((box.round(5).tolist(), name))
    return captions, boxes


def assert_read(index, folder):
    captions, boxes = expected(folder)
    assert len(index) == sum(SPLITS.values()) and index.skipped == {}
    said = index.annotations
    for row, name in enumerate(index.names):
        name = name.rpartition("/")[2]
        assert sorted(said.captions[row]) == sorted(captions[name])
        pairs = zip(said.boxes[row].round(5).tolist(), said.box_labels[row], strict=True)
        got = [(np.array(box, np.float32).tolist(), label) for box, label in pairs]
        wanted = [(np.array(box, np.float32).tolist(), label) for box, label in boxes[name]]
        assert [label for _, label in got] == [label for _, label in wanted]
        assert np.allclose([box for box, _ in got], [box for box, _ in wanted], atol=1e-5)
    assert sum(map(len, said.boxes)) == sum(map(len, boxes.values())) > 10
    assert said.classes == ()  # `train2017` is no class


def test_a_folder_as_it_is_downloaded(coco):
    index = open_index(str(coco))
    assert_read(index, coco)
    assert index.notes == ()
    lengths = [open_source(str(coco), split=split).info.length for split in ("train", "test")]
    assert lengths == list(SPLITS.values())


@pytest.mark.parametrize("flat", [False, True])
def test_tars_with_the_annotations_beside_them(coco, flat):
    for split in SPLITS:
        with tarfile.open(coco / f"coco-{split}.tar", "w") as tar:
            for path in sorted((coco / split).iterdir()):
                tar.add(path, path.name)
                path.unlink()
        (coco / split).rmdir()
    if flat:
        for path in (coco / "annotations").iterdir():
            path.rename(coco / path.name)
        (coco / "annotations").rmdir()
    assert_read(open_index(str(coco)), coco)
    alone = open_index(str(coco / "coco-val2017.tar"))
    assert len(alone) == 5 and all(len(texts) == 2 for texts in alone.annotations.captions)
    assert any("none" not in note and "are not here" in note for note in alone.notes)


def rewrite(path, change):
    lists = json.loads(path.read_text())
    change(lists)
    path.write_text(json.dumps(lists))


def test_what_is_not_used_is_said(coco):
    """A part of the pictures, crowds, and a file of another form."""
    for path in sorted((coco / "train2017").iterdir())[:4]:
        path.unlink()
    instances = coco / "annotations" / "instances_val2017.json"
    rewrite(instances, lambda lists: lists["annotations"][0].update(iscrowd=1))
    (coco / "captions_mine.json").write_text('{"000001.png": "mine"}')
    index = open_index(str(coco))
    assert len(index) == 13 and index.skipped == {}
    assert sorted(index.notes) == [
        "1 boxes of annotations/instances_val2017.json are left out: they are around crowds",
        "4 of the pictures that annotations/captions_train2017.json lists are not here",
        "4 of the pictures that annotations/instances_train2017.json lists are not here",
        "captions_mine.json is ignored: it has no lists `images` and `annotations`",
    ]


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("captions", {"caption": " "}, "an empty caption"),
        ("captions", {"caption": 5}, "must be text"),
        ("instances", {"bbox": [0, 0, 0, 5]}, "positive width"),
        ("instances", {"bbox": "no"}, "four numbers"),
        ("instances", {"category_id": 77}, "unknown category, 77"),
        ("instances", {"category_id": [1]}, "unknown category"),
    ],
)
def test_a_damaged_annotation_skips_its_picture(coco, kind, change, reason):
    path = coco / "annotations" / f"{kind}_train2017.json"
    lists = json.loads(path.read_text())
    bad = lists["annotations"][0]
    rewrite(path, lambda lists: lists["annotations"][0].update(change))
    index = open_index(str(coco))
    name = f"train2017/{bad['image_id']:06d}.png"
    assert list(index.skipped) == [name] and reason in index.skipped[name]
    assert name not in index.names and len(index) == 16


@pytest.mark.parametrize(
    "lists",
    [
        {"images": [5, {"id": []}, {"id": 1}, {"id": 1, "file_name": 7}, {"file_name": "a.png"}],
         "annotations": [5, {}, {"image_id": []}, {"image_id": 1, "caption": "x"}]},
        {"images": [], "annotations": [], "categories": [5, {}, {"id": []}, {"id": 1}]},
        {"images": [{"id": 1, "file_name": "../../../etc/passwd"}], "annotations": []},
        {"images": {}, "annotations": []},
        [],
    ],
)  # fmt: skip
def test_odd_lists_are_no_error(tmp_path, lists):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "captions_a.json").write_text(json.dumps(lists))
    index = open_index(str(tmp_path))
    assert len(index) == 1 and index.notes and index.annotations.captions is None


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"images": [1,', "\xff"])
def test_a_damaged_file_is_an_error(tmp_path, text):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "captions_a.json").write_text(text, "latin-1")
    with pytest.raises(ValueError, match=r"captions_a.json is not valid JSON"):
        open_index(str(tmp_path))


def test_a_json_of_a_pictures_own_name_is_that_pictures(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "captions_1.png")
    (tmp_path / "captions_1.json").write_text('{"caption": "my picture"}')
    assert open_index(str(tmp_path)).annotations.captions == [("my picture",)]


def test_pictures_of_one_name_are_told_apart_by_the_folder_that_the_file_names(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / split / "1.png")
        lists = {
            "images": [{"id": 1, "file_name": "1.png"}],
            "annotations": [{"image_id": 1, "caption": f"of {split}"}],
        }
        (tmp_path / f"captions_{split}.json").write_text(json.dumps(lists))
    index = open_index(str(tmp_path))
    said = dict(zip(index.names, index.annotations.captions, strict=True))
    assert said == {"train/1.png": ("of train",), "val/1.png": ("of val",)}

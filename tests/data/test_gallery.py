"""Pictures of files, folders and sources come once, whole, and in their own size."""

import numpy as np
import pytest
from PIL import Image

from triptych.data import gallery
from triptych.data.gallery import decode, list_pictures, open_labelled
from triptych.data.sources import open_index
from triptych.scenes.scene import SHAPES


def save(path, value, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def test_a_folder_is_all_below_it_and_sizes_stay(tmp_path):
    save(tmp_path / "b.png", 1, (30, 20))
    save(tmp_path / "deep" / "a.png", 2)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    (found,) = decode(list_pictures([str(tmp_path)]), 8)
    assert [p.shape for p in found.pictures] == [(20, 30, 3), (9, 12, 3)]
    assert list(found.skipped) == [str(tmp_path / "torn.png")]
    left_alone = list_pictures([str(tmp_path)]).skipped
    assert left_alone == {f"{tmp_path}/out.png": "a link that leads outside the folder"}


def test_large_pictures_do_not_wait_for_a_batch(tmp_path, monkeypatch):
    for number in range(6):
        save(tmp_path / f"{number}.png", number)
    monkeypatch.setattr(gallery, "WAITING", 12 * 9 * 3)
    sizes = [len(part.pictures) for part in decode(list_pictures([str(tmp_path)]), 100)]
    assert sum(sizes) == 6 and max(sizes) <= 3


def test_a_source_gives_what_it_holds_out_else_everything(tmp_path):
    digits = open_labelled("digits")
    index = open_index("digits")
    assert len(digits.pictures) == 297 and digits.classes == tuple("0123456789")
    row = list(index.names).index(digits.pictures[5].name)
    assert digits.pictures[5].label == index.annotations.labels[row]
    assert np.array_equal(digits.pictures[5].open(), index.stored.load(row, 3, None))
    assert len(open_labelled("digits", "train").pictures) == 1500
    for number in range(40):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", number)
    assert len(open_labelled(str(tmp_path)).pictures) == 40


def test_a_limit_keeps_every_class(tmp_path):
    for number in range(40):
        save(tmp_path / "abcd"[number // 10] / f"{number}.png", number)
    assert [p.label for p in open_labelled(str(tmp_path), limit=8).pictures] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_the_endless_world_and_what_has_no_classes(tmp_path):
    world = open_labelled("scenes-one", limit=3)
    assert world.classes == SHAPES and len(world.pictures) == 3
    (part,) = decode(world, 8)
    assert all(p.shape == (64, 64, 3) for p in part.pictures)
    save(tmp_path / "a.png", 1)
    for source in ("scenes", str(tmp_path)):
        with pytest.raises(ValueError, match="has no classes"):
            open_labelled(source)

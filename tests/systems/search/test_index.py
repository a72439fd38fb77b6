"""An index is what the model says of the pictures that are there now, whatever happened before."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.interruption import Disk, deaths, dies
from tests.systems.clip.tiny_clip import picture, pictures, saved, tiny_clip
from triptych.loading import load
from triptych.systems.clip.model import Clip
from triptych.systems.search import index
from triptych.systems.search.index import Index, index_place, model_digest, update
from triptych.vision.images import open_picture, save_picture
from triptych.weights.loaded import Loaded

CLIP = tiny_clip()
DIGEST = model_digest(CLIP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", 10)


def brought_up(folder: Path, place: Path, loaded: Loaded = CLIP) -> tuple[Index, int]:
    *_, last = update(folder, place, loaded, model_digest(loaded))
    assert last.index is not None and last.done == last.total
    return last.index, last.total


def by_name(found: Index) -> dict[str, np.ndarray]:
    rows = torch.cat([*found.blocks, torch.empty(0, 16)]).numpy()
    assert len(rows) == len(found.names)
    return dict(zip(found.names, rows, strict=True))


def truth(folder: Path) -> dict[str, np.ndarray]:
    """What the model says of each picture by itself, found and read without the index."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        if not path.name.startswith("broken"):
            vector = CLIP.embed_image([open_picture(path, channels=3)])[0]
            found[path.relative_to(folder).as_posix()] = vector.numpy()
    return found


def assert_true(found: Index, folder: Path) -> None:
    rows, expected = by_name(found), truth(folder)
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert np.allclose(row, expected[name], atol=1e-6), name


def test_rows_are_the_models_vectors_and_come_from_the_disk(folder: Path, tmp_path: Path) -> None:
    found, new = brought_up(folder, tmp_path / "index")
    assert new == 10 and found.skipped == {}
    assert_true(found, folder)
    again, new = brought_up(folder, tmp_path / "index")
    assert new == 0 and again.state == found.state
    (block,) = again.blocks
    assert block.dtype == torch.float32
    with Path("/proc/self/maps").open() as maps:
        assert any(str(tmp_path / "index" / "000001.safetensors") in line for line in maps)


def test_what_was_missing_once_is_read_again(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Indexes of before remember sound pictures whose names are not UTF-8 as missing."""

    def missing(path: Path, loaded: Loaded) -> np.ndarray:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(index, "open_reduced", missing)
        found, _ = brought_up(folder, tmp_path / "index")
        assert len(found.skipped) == 10 and found.names == ()
    found, new = brought_up(folder, tmp_path / "index")
    assert new == 10 and found.skipped == {}
    assert_true(found, folder)


def test_new_changed_and_removed_files_are_noticed(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    brought_up(folder, place)
    save_picture(folder / "new.png", picture(50))
    save_picture(folder / "001.png", picture(51))
    (folder / "002.png").unlink()
    (folder / "004.png").rename(folder / "moved.png")
    found, new = brought_up(folder, place)
    assert new == 3  # new.png, 001.png, moved.png
    assert_true(found, folder)
    status = (folder / "005.png").stat()
    save_picture(folder / "005.png", picture(52))
    os.utime(folder / "005.png", ns=(0, status.st_mtime_ns + 1))  # the same second, nearly
    found, new = brought_up(folder, place)
    assert new == 1
    assert_true(found, folder)


def test_broken_files_are_skipped_named_and_not_looked_at_again(folder, tmp_path, monkeypatch):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    (folder / "broken-page.png").write_bytes(b"<!doctype html><html>")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.txt").write_text("no picture, and not named")
    (folder / "outside.png").symlink_to("/etc/hostname")
    found, new = brought_up(folder, tmp_path / "index")
    assert new == 13
    assert set(found.skipped) == {"broken.png", "broken-page.png", "photo.heic", "outside.png"}
    assert "HTML" in found.skipped["broken-page.png"] and "HEIC" in found.skipped["photo.heic"]
    (folder / "outside.png").unlink()
    assert_true(found, folder)
    monkeypatch.setattr(index, "open_reduced", None)  # would fail if anything were opened
    again, new = brought_up(folder, tmp_path / "index")
    assert new == 0 and set(again.skipped) == {"broken.png", "broken-page.png", "photo.heic"}
    monkeypatch.undo()
    save_picture(folder / "broken.png", picture(60))  # mended
    mended, new = brought_up(folder, tmp_path / "index")
    assert new == 1 and "broken.png" in mended.names and "broken.png" not in mended.skipped


def test_a_vector_that_is_not_finite_is_no_vector(folder: Path, tmp_path: Path) -> None:
    sick = tiny_clip()
    assert isinstance(sick.model, Clip)
    with torch.no_grad():
        sick.model.logit_scale.fill_(1)  # another digest
        sick.model.image.projection.weight[0, 0] = torch.nan  # type: ignore[union-attr, index]
    found, _ = brought_up(folder, tmp_path / "index", sick)
    assert found.names == () and len(found.skipped) == 10


def test_another_models_index_is_refused(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    brought_up(folder, place)
    with pytest.raises(ValueError, match="made by another model"):
        brought_up(folder, place, tiny_clip(seed=1))
    brought_up(folder, place)  # and nothing happened to it


def test_a_digest_is_of_the_model_not_of_its_precision_or_name(tmp_path: Path) -> None:
    saved(CLIP, tmp_path / "run")
    for dtype in ("float32", "bfloat16"):
        assert model_digest(load(str(tmp_path / "run"), dtype=dtype)) == DIGEST
    assert model_digest(tiny_clip(name="other")) == DIGEST
    assert model_digest(tiny_clip(seed=1)) != DIGEST


def test_an_index_never_lies_among_the_pictures(folder: Path, tmp_path: Path, monkeypatch) -> None:
    before = sorted(folder.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = index_place(folder, DIGEST)
    assert place.is_relative_to(tmp_path / "cache") and "photos" in place.name
    assert place != index_place(folder, "another model")
    assert place != index_place(tmp_path, DIGEST)
    monkeypatch.chdir(folder)
    assert place == index_place(Path(), DIGEST)  # one folder, however it is written
    brought_up(folder, place)
    assert sorted(folder.rglob("*")) == before
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert index_place(folder, DIGEST).is_relative_to(Path.home() / ".cache")


def test_a_chosen_place_must_be_its_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has other files in it \('00[01]"):
        index_place(folder, DIGEST, str(folder))
    with pytest.raises(ValueError, match="is a file"):
        index_place(folder, DIGEST, str(folder / "001.png"))
    brought_up(folder, tmp_path / "index")
    assert index_place(folder, DIGEST, str(tmp_path / "index")) == tmp_path / "index"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no folder"),
        (lambda path: path.mkdir(), "holds no pictures"),
        (lambda path: path.write_text("x"), "no folder"),
    ],
)
def test_no_pictures_is_an_error_and_costs_no_index(tmp_path: Path, make, words) -> None:
    make(tmp_path / "photos")
    with pytest.raises(ValueError, match=words):
        brought_up(tmp_path / "photos", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_unmounted_folder_does_not_empty_its_index(folder: Path, tmp_path: Path) -> None:
    brought_up(folder, tmp_path / "index")
    shutil.move(folder, tmp_path / "away")
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        brought_up(folder, tmp_path / "index")
    folder.rmdir()
    shutil.move(tmp_path / "away", folder)
    assert brought_up(folder, tmp_path / "index")[1] == 0


def test_two_processes_do_not_write_one_index(folder: Path, tmp_path: Path) -> None:
    first = update(folder, tmp_path / "index", CLIP, DIGEST)
    next(first)
    with pytest.raises(RuntimeError, match="in use by process"):
        next(update(folder, tmp_path / "index", CLIP, DIGEST))
    first.close()
    brought_up(folder, tmp_path / "index")


def test_a_damaged_file_is_made_again(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    brought_up(folder, place)
    (shard,) = place.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-9])
    found, new = brought_up(folder, place)
    assert new == 10
    assert_true(found, folder)
    assert shard.exists() is False and len(list(place.glob("*.safetensors"))) == 1


def test_stopping_keeps_what_is_done(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "BATCH", 3)
    work = update(folder, tmp_path / "index", CLIP, DIGEST)
    shares = [next(work).done for _ in range(3)]
    assert shares == [0, 3, 6]
    work.close()  # Ctrl-C, or a window that is closed
    found, new = brought_up(folder, tmp_path / "index")
    assert new == 4
    assert_true(found, folder)


def test_many_small_files_become_one(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "BATCH", 1)
    monkeypatch.setattr(index, "SHARD", 1)
    place = tmp_path / "index"
    found, _ = brought_up(folder, place)
    assert len(list(place.glob("*.safetensors"))) == 1
    assert list(found.names) == sorted(found.names)
    assert_true(found, folder)
    monkeypatch.setattr(index, "FULL", 4)  # large ones stay apart, and are left alone
    save_picture(folder / "new.png", picture(50))
    (folder / "001.png").unlink()
    found, _ = brought_up(folder, place)
    assert_true(found, folder)
    whole = {p: p.stat().st_mtime_ns for p in place.glob("*.safetensors")}
    assert len(whole) == 4  # 9 rows of the old one in three, and a new one
    (folder / "new.png").unlink()
    found, _ = brought_up(folder, place)
    assert_true(found, folder)
    left = {p: p.stat().st_mtime_ns for p in place.glob("*.safetensors")}
    assert left.items() < whole.items() and len(left) == 3


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_continued_equals_unbroken(
    tmp_path: Path, monkeypatch, every: int
) -> None:
    """Before and in the middle of every operation on the disk, and with a power cut: while new
    pictures are added, and while files are joined and rows that no longer hold are dropped.
    """
    monkeypatch.setattr(index, "BATCH", 2)
    monkeypatch.setattr(index, "SHARD", 2)
    monkeypatch.setattr(index, "MANY", 2)
    folder, start = pictures(tmp_path / "photos", 8), tmp_path / "start"
    brought_up(folder, start)
    (folder / "001.png").unlink()
    save_picture(folder / "002.png", picture(70))
    save_picture(folder / "new.png", picture(71))
    expected, place = truth(folder), tmp_path / "place"

    def afresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(start, place)

    def work() -> None:
        brought_up(folder, place)

    afresh()
    found = deaths(work, place)
    assert len(found) > 12
    for at, how in found[:-1:every]:
        afresh()
        assert dies(work, Disk(place, at, how)), (at, how)
        rows = by_name(brought_up(folder, place)[0])
        assert rows.keys() == expected.keys(), (at, how)
        for name, row in rows.items():
            assert np.allclose(row, expected[name], atol=1e-6), (at, how, name)
        assert not list(place.glob(".*")), (at, how)
